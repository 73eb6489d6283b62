// The images that a person has marked, and the threshold that they suggest.

import { useEffect, useState } from 'preact/hooks';
import { requestBlob, requestJSON } from './api';
import { thumbnail } from './files';
import { count, score, when } from './format';
import type { Feedback, Summary } from './types';
import { Empty, ErrorBox, Icon, Notice } from './ui';

export interface FeedbackList {
  feedback: Feedback[];
  summary: Summary;
}

interface FeedbackProps {
  name: string;
  list: FeedbackList;
  onChanged: () => void;
}

export function FeedbackCard({ name, list, onChanged }: FeedbackProps) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [all, setAll] = useState(false);
  const act = async (path: string, method: string, json?: unknown) => {
    setBusy(true);
    setError(undefined);
    try {
      await requestJSON(`models/${encodeURIComponent(name)}${path}`, { method, json });
      onChanged();
    } catch (e) {
      setError(e);
    } finally {
      setBusy(false);
    }
  };
  const { summary, feedback } = list;
  const shown = all ? feedback : feedback.slice(0, 8);
  const suggested = summary.suggested_threshold;
  return (
    <section class="card" aria-labelledby="feedback-title">
      <h2 id="feedback-title">Your feedback</h2>
      {feedback.length === 0 ? (
        <Empty icon="judge" title="Nothing marked yet">
          <p>Judge images and say what they really are. From that, a better threshold can be suggested.</p>
        </Empty>
      ) : (
        <>
          <p class="hint">
            {count(summary.normal, 'normal image')} ({summary.false_alarms} reported wrongly), {count(summary.anomalous, 'anomalous image')} ({summary.missed} missed).
          </p>
          {suggested !== null && summary.suggested && (
            <Notice kind="good">
              <p>
                With a threshold of <strong>{score(suggested)}</strong> instead of {score(summary.threshold)} there would be {count(summary.suggested.false_alarms, 'false alarm')} and{' '}
                {summary.suggested.missed} missed.
              </p>
              <button type="button" class="small" disabled={busy} onClick={() => void act('', 'PATCH', { threshold: suggested, note: 'suggested by feedback' })}>
                Use {score(suggested)}
              </button>
            </Notice>
          )}
          {error !== undefined && <ErrorBox error={error} />}
          <ul class="feedback-list">
            {shown.map((f) => (
              <li key={f.id}>
                <StoredImage path={`models/${encodeURIComponent(name)}/feedback/${encodeURIComponent(f.id)}/image`} name={f.filename} />
                <div>
                  <p>
                    <strong class={f.label === 'normal' ? 'good-text' : 'bad-text'}>{f.label === 'normal' ? 'Normal' : 'Anomalous'}</strong>
                    {f.anomaly_score !== null && ` · score ${score(f.anomaly_score)}`}
                    {f.anomaly_score !== null && f.is_anomaly !== (f.label === 'anomalous') && (
                      <span class="badge failed">{f.is_anomaly ? 'false alarm' : 'missed'}</span>
                    )}
                  </p>
                  <p class="hint path">
                    {f.filename || 'without a name'}, {when(f.created_at)}
                  </p>
                </div>
                <button type="button" class="icon-button" disabled={busy} aria-label={`Remove ${f.filename || 'this image'}`} onClick={() => void act(`/feedback/${encodeURIComponent(f.id)}`, 'DELETE')}>
                  <Icon name="trash" />
                </button>
              </li>
            ))}
          </ul>
          {feedback.length > shown.length && (
            <button type="button" class="small" onClick={() => setAll(true)}>
              Show all {feedback.length}
            </button>
          )}
        </>
      )}
    </section>
  );
}

/** An image of the service, fetched with the token. */
function StoredImage({ path, name }: { path: string; name: string }) {
  const [url, setURL] = useState<string>();
  useEffect(() => {
    const abort = new AbortController();
    let made: string | undefined;
    requestBlob(path, { signal: abort.signal })
      .then(async (image) => {
        made = (await thumbnail(image, 96))?.url;
        if (abort.signal.aborted && made) URL.revokeObjectURL(made);
        else setURL(made);
      })
      .catch(() => undefined);
    return () => {
      abort.abort();
      if (made) URL.revokeObjectURL(made);
    };
  }, [path]);
  return url ? <img class="thumb" src={url} alt={name} /> : <span class="thumb" aria-hidden="true" />;
}
