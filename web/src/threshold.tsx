// Moving the threshold of a model, with what that does.

import { useEffect, useState } from 'preact/hooks';
import { requestJSON } from './api';
import { count, percent, score } from './format';
import { falseAlarms, Histogram, Legend } from './histogram';
import type { Entry, Scores } from './types';
import { ErrorBox, Notice } from './ui';

interface ThresholdProps {
  name: string;
  scores: Scores;
  onChanged: () => void;
}

export function ThresholdCard({ name, scores, onChanged }: ThresholdProps) {
  const [draft, setDraft] = useState(scores.threshold);
  const [rate, setRate] = useState('');
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  useEffect(() => setDraft(scores.threshold), [scores.threshold]);
  const patch = async (values: { threshold: number } | { false_alarm_rate: number }) => {
    setBusy(true);
    setError(undefined);
    try {
      await requestJSON<Entry>(`models/${encodeURIComponent(name)}`, { method: 'PATCH', json: values });
      setRate('');
      onChanged();
    } catch (e) {
      setError(e);
    } finally {
      setBusy(false);
    }
  };
  const moved = draft !== scores.threshold;
  const hasCalibration = scores.calibration.scores.length > 0;
  return (
    <section class="card" aria-labelledby="threshold-title">
      <div class="card-head">
        <div>
          <h2 id="threshold-title">Threshold</h2>
          <p class="hint">Images with a score above the line are anomalous. Move the line to report fewer or more.</p>
        </div>
        <p class="big-number">{score(draft)}</p>
      </div>
      {!hasCalibration && (
        <Notice>
          <p>This model has no calibration scores, so false alarms cannot be predicted. Calibrate it on normal images.</p>
        </Notice>
      )}
      <Histogram scores={scores} draft={draft} onMove={setDraft} />
      <Legend scores={scores} />
      <Effects scores={scores} draft={draft} />
      {error !== undefined && <ErrorBox error={error} />}
      <div class="actions threshold-actions">
        <button type="button" class="primary" disabled={!moved || busy} onClick={() => void patch({ threshold: draft })}>
          {busy ? 'Storing…' : 'Use this threshold'}
        </button>
        <button type="button" disabled={!moved || busy} onClick={() => setDraft(scores.threshold)}>
          Put it back
        </button>
        {hasCalibration && (
          <form
            class="inline grow end"
            onSubmit={(e) => {
              e.preventDefault();
              void patch({ false_alarm_rate: Number(rate.replace(',', '.')) / 100 });
            }}
          >
            <label class="inline">
              <span>Or by false alarms, in percent</span>
              <input type="text" inputMode="decimal" class="short" required value={rate} placeholder={scores.false_alarm_rate ? String(+(scores.false_alarm_rate * 100).toPrecision(3)) : '5'} onInput={(e) => setRate(e.currentTarget.value)} />
            </label>
            <button type="submit" class="small" disabled={busy}>
              Set
            </button>
          </form>
        )}
      </div>
    </section>
  );
}

/** What the threshold does to normal, recent and marked images. */
function Effects({ scores, draft }: { scores: Scores; draft: number }) {
  const moved = draft !== scores.threshold;
  const rate = falseAlarms(scores.calibration, draft);
  const now = falseAlarms(scores.calibration, scores.threshold);
  const recent = scores.recent.scores;
  const above = (list: number[], t: number) => list.filter((s) => s > t).length;
  const marked = (label: 'normal' | 'anomalous') => scores.feedback.filter((f) => f.label === label && f.anomaly_score !== null).map((f) => f.anomaly_score!);
  const normal = marked('normal');
  const anomalous = marked('anomalous');
  const rows: [string, string, string][] = [];
  if (rate !== undefined && now !== undefined) rows.push(['Normal images reported, at most about', percent(rate), percent(now)]);
  if (recent.length > 0) rows.push([`Of the last ${count(recent.length, 'image')}, reported`, String(above(recent, draft)), String(above(recent, scores.threshold))]);
  if (normal.length > 0) rows.push([`Of ${normal.length} really normal, reported`, String(above(normal, draft)), String(above(normal, scores.threshold))]);
  if (anomalous.length > 0) {
    rows.push([`Of ${anomalous.length} really anomalous, missed`, String(anomalous.length - above(anomalous, draft)), String(anomalous.length - above(anomalous, scores.threshold))]);
  }
  if (rows.length === 0) return null;
  return (
    <dl class="effects" aria-live="polite">
      {rows.map(([what, then, before]) => (
        <div key={what}>
          <dt>{what}</dt>
          <dd>
            {then}
            {moved && then !== before && <small> now {before}</small>}
          </dd>
        </div>
      ))}
    </dl>
  );
}
