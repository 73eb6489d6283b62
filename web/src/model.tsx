// The view of one model: what it decides by, how well, and what can be done with it.

import { useState } from 'preact/hooks';
import { ApiError, request, requestJSON } from './api';
import { CalibrateCard } from './calibrate';
import { LossChart } from './chart';
import { DetectabilityCard } from './detectability';
import { FeedbackCard, type FeedbackList } from './feedbackcard';
import { percent, when } from './format';
import { setSource } from './judging';
import { AboutCard, DownloadCard, SnippetCard, VersionsCard } from './modelparts';
import { inputSize } from './preparation';
import { go, useLoaded } from './store';
import { ThresholdCard } from './threshold';
import type { Drift, Entry, Scores, Version } from './types';
import { capital, ConfirmButton, Empty, ErrorBox, Icon, Loading, Notice } from './ui';

interface Everything {
  entry: Entry;
  scores?: Scores;
  feedback?: FeedbackList;
  versions?: Version[];
}

async function load(name: string, signal: AbortSignal): Promise<Everything> {
  const path = `models/${encodeURIComponent(name)}`;
  const entry = await requestJSON<Entry>(path, { signal });
  if (entry.state !== 'ready') return { entry };
  const [scores, feedback, versions] = await Promise.all([
    requestJSON<Scores>(`${path}/scores`, { signal }),
    requestJSON<FeedbackList>(`${path}/feedback`, { signal }),
    requestJSON<{ versions: Version[] }>(`${path}/versions`, { signal }),
  ]);
  return { entry, scores, feedback, versions: versions.versions };
}

export function ModelView({ name }: { name: string }) {
  const model = useLoaded(name, (signal) => load(name, signal));
  const [error, setError] = useState<unknown>();
  const back = (
    <a class="back" href="#/models">
      <Icon name="back" /> All models
    </a>
  );
  if (!model.value) {
    if (model.error instanceof ApiError && model.error.status === 404) {
      return (
        <div class="stack">
          {back}
          <Empty icon="models" title={`There is no model ${name}`}>
            <p>It was removed, or never stored under this name.</p>
          </Empty>
        </div>
      );
    }
    return model.error !== undefined ? <ErrorBox error={model.error} retry={model.reload} /> : <Loading what={`the model ${name}`} />;
  }
  const { entry, scores, feedback, versions } = model.value;
  const metadata = entry.metadata;
  const remove = async () => {
    try {
      await request(`models/${encodeURIComponent(name)}`, { method: 'DELETE' });
      go('models');
    } catch (e) {
      setError(e);
    }
  };
  return (
    <div class="stack">
      {back}
      <header class="view-head row spread">
        <h1>{name}</h1>
        {entry.state === 'ready' && (
          <button
            type="button"
            class="primary"
            onClick={() => {
              setSource({ kind: 'model', name });
              go('judge');
            }}
          >
            Judge images
          </button>
        )}
      </header>
      {error !== undefined && <ErrorBox error={error} />}
      {model.error !== undefined && <ErrorBox error={model.error} retry={model.reload} />}
      {entry.state === 'loading' && <Loading what="the model's file" />}
      {entry.state === 'broken' && <ErrorBox error={new Error(entry.error)} title="This model cannot be used" />}
      {scores && <DriftNotice name={name} drift={scores.drift} onChanged={model.reload} />}
      <div class="two-columns">
        <div class="stack">
          {scores && <ThresholdCard name={name} scores={scores} onChanged={model.reload} />}
          {feedback && <FeedbackCard name={name} list={feedback} onChanged={model.reload} />}
          {metadata?.detectability && <DetectabilityCard table={metadata.detectability} of={metadata.preprocessing?.tiles ? 'image as it is cut into tiles' : `image of ${inputSize(metadata)} px`} />}
          {entry.state === 'ready' && <SnippetCard name={name} />}
          {metadata?.training_losses && metadata.training_losses.length > 0 && (
            <section class="card">
              <h2>Learning curve</h2>
              <p class="hint">The mean error of the reconstruction in each epoch of the training.</p>
              <LossChart losses={metadata.training_losses} epochs={metadata.training_losses.length} />
            </section>
          )}
        </div>
        <div class="stack">
          <AboutCard entry={entry} />
          {versions && <VersionsCard name={name} versions={versions} onChanged={model.reload} />}
          {entry.state === 'ready' && <CalibrateCard name={name} onChanged={model.reload} />}
          {entry.state === 'ready' && <DownloadCard name={name} />}
          <div class="actions end">
            <ConfirmButton small label="Delete this model" question={`The model ${name}, its versions and its feedback are removed. This cannot be undone.`} onConfirm={() => void remove()} />
          </div>
        </div>
      </div>
    </div>
  );
}

function DriftNotice({ name, drift, onChanged }: { name: string; drift: Drift; onChanged: () => void }) {
  const [error, setError] = useState<unknown>();
  if (!drift.available || (!drift.alarm && drift.images === 0)) return null;
  if (!drift.alarm) {
    return (
      <p class="hint drift-quiet">
        <Icon name="ok" /> No change of the images since {drift.images === 1 ? 'the first image' : `${drift.images.toLocaleString('en')} images`}.
      </p>
    );
  }
  const reset = async () => {
    try {
      await requestJSON<Drift>(`models/${encodeURIComponent(name)}/drift/reset`, { method: 'POST' });
      onChanged();
    } catch (e) {
      setError(e);
    }
  };
  return (
    <Notice kind="warn">
      <strong>The images have changed{drift.since ? ` since ${when(drift.since)}` : ''}</strong>
      <p>
        {capital(drift.message ?? 'their scores are higher than those of the calibration images').replace(/\.$/, '')}. Without a change, an alarm comes with a probability of at most{' '}
        {percent(drift.level)}, however long one watches.
      </p>
      <button type="button" class="small" onClick={() => void reset()}>
        Watch anew
      </button>
      {error !== undefined && <ErrorBox error={error} />}
    </Notice>
  );
}
