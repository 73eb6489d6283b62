// One judged image, large: verdict, score, heatmap, regions, and the person's own verdict.

import { useState } from 'preact/hooks';
import { requestJSON } from './api';
import { count, score } from './format';
import { boxesStore, change, opacityStore, removeImage, scoreOf, type Judged, type Source } from './judging';
import { Picture } from './picture';
import { useStore } from './store';
import type { Label } from './types';
import { ErrorBox, Icon, Warnings } from './ui';

export function verdictName(j: Judged): string {
  switch (j.state) {
    case 'waiting':
      return 'Waiting';
    case 'running':
      return 'Judging…';
    case 'error':
      return 'Not judged';
  }
  return j.verdict?.is_anomaly ? 'Anomalous' : 'Normal';
}

interface DetailProps {
  image: Judged;
  source: Source;
  position: string;
  onStep: (by: number) => void;
}

export function Detail({ image, source, position, onStep }: DetailProps) {
  const opacity = useStore(opacityStore);
  const boxes = useStore(boxesStore);
  const v = image.verdict;
  return (
    <section
      class="card detail"
      aria-label={`Verdict on ${image.name}`}
      onKeyDown={(e) => {
        if (e.target instanceof HTMLInputElement) return;
        if (e.key === 'ArrowRight') onStep(1);
        if (e.key === 'ArrowLeft') onStep(-1);
      }}
    >
      <div class="detail-picture">
        <Picture key={image.id} image={image} opacity={opacity} boxes={boxes} />
      </div>
      <div class="detail-side">
        <div class="detail-head">
          <p class={`verdict ${v ? (v.is_anomaly ? 'bad' : 'good') : ''}`}>
            {v && <Icon name={v.is_anomaly ? 'alert' : 'ok'} />}
            {verdictName(image)}
          </p>
          <p class="hint path">{image.name}</p>
        </div>
        {image.error && <ErrorBox error={new Error(image.error)} />}
        {v && <ScoreBar value={scoreOf(v)} threshold={v.threshold} />}
        {v && (
          <p class="hint">
            {v.regions === undefined
              ? 'This model decides by the error of the whole image: it has no heatmap.'
              : v.regions.length === 0
                ? v.is_anomaly
                  ? 'The image as a whole is unusual; no single region is.'
                  : 'No region is unusual.'
                : `${count(v.regions.length, 'unusual region')}.`}
          </p>
        )}
        <Warnings list={v?.warnings} />
        {v?.heatmap && (
          <div class="stack tight">
            {!image.unshown ? (
              <>
                <label class="slider">
                  <span>Heatmap</span>
                  <input
                    type="range"
                    min={0}
                    max={100}
                    value={Math.round(opacity * 100)}
                    aria-valuetext={`${Math.round(opacity * 100)} percent`}
                    onInput={(e) => opacityStore.set(Number(e.currentTarget.value) / 100)}
                  />
                  <output>{Math.round(opacity * 100)} %</output>
                </label>
                <label class="check">
                  <input type="checkbox" checked={boxes} onChange={(e) => boxesStore.set(e.currentTarget.checked)} /> Frames around the regions
                </label>
              </>
            ) : (
              <p class="hint">This browser cannot show files of this kind. The picture is what the model was given, in grey.</p>
            )}
          </div>
        )}
        {v && source.kind === 'model' && <Feedback key={image.id} image={image} model={source.name} />}
        <div class="actions spread">
          <div class="actions">
            <button type="button" class="small" onClick={() => onStep(-1)} aria-label="Previous image">
              ‹
            </button>
            <span class="hint">{position}</span>
            <button type="button" class="small" onClick={() => onStep(1)} aria-label="Next image">
              ›
            </button>
          </div>
          <button type="button" class="small" onClick={() => removeImage(image.id)}>
            Remove
          </button>
        </div>
      </div>
    </section>
  );
}

/** The score between 0 and twice the threshold. */
function ScoreBar({ value, threshold }: { value: number; threshold: number }) {
  const end = Math.max(2 * threshold, value * 1.05, 1e-12);
  const at = (x: number) => `${Math.min(Math.max(x / end, 0), 1) * 100}%`;
  return (
    <div class="score">
      <p>
        <span class="score-value">{score(value)}</span> <span class="hint">threshold {score(threshold)}</span>
      </p>
      <div class="score-bar" aria-hidden="true">
        <span class={value > threshold ? 'fill bad' : 'fill good'} style={{ width: at(value) }} />
        <span class="mark" style={{ left: at(threshold) }} />
      </div>
    </div>
  );
}

function Feedback({ image, model }: { image: Judged; model: string }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const send = async (label: Label) => {
    setBusy(true);
    setError(undefined);
    try {
      const form = new FormData();
      form.append('label', label);
      form.append('imageFile', image.file, image.name.split('/').pop());
      await requestJSON(`models/${encodeURIComponent(model)}/feedback`, { method: 'POST', body: form });
      change(image.id, { label });
    } catch (e) {
      setError(e);
    } finally {
      setBusy(false);
    }
  };
  return (
    <div class="feedback">
      <p id="feedback-question">What is it really?</p>
      <div class="segments" role="group" aria-labelledby="feedback-question">
        <button type="button" disabled={busy} aria-pressed={image.label === 'normal'} onClick={() => void send('normal')}>
          Normal
        </button>
        <button type="button" disabled={busy} aria-pressed={image.label === 'anomalous'} onClick={() => void send('anomalous')}>
          Anomalous
        </button>
      </div>
      <p class="hint" aria-live="polite">
        {image.label ? 'Stored with the model, which suggests a better threshold from it.' : 'Your answer and the image are stored with the model.'}
      </p>
      {error !== undefined && <ErrorBox error={error} />}
    </div>
  );
}
