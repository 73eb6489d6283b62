// The results of a job that judges images.

import { requestBlob } from './api';
import { download } from './files';
import { duration, when } from './format';
import type { Job, JobProgress } from './types';
import { Icon } from './ui';

const count = (n: number, what: string) => `${n.toLocaleString('en')} ${what}`;

/** How many images are judged so far, or nothing for a training. */
export function imagesSoFar({ images }: JobProgress): string {
  return images ? `${count(images.judged + images.unreadable, 'of')} ${count(images.all, 'images')}` : '';
}

export function DetectionResults({ job, acting, act }: { job: Job; acting: boolean; act: (work: () => Promise<unknown>) => Promise<void> }) {
  const images = job.progress.images;
  const save = (format: string) => act(async () => download(await requestBlob(`jobs/${job.id}/results?format=${format}`), `verdicts-${job.id.slice(0, 6)}.${format}`));
  return (
    <section class="card stack success">
      <div class="row">
        <span class="success-mark">
          <Icon name="ok" />
        </span>
        <div>
          <h2>All images are judged</h2>
          {images && (
            <p>
              {[
                count(images.judged - images.anomalous, 'normal'),
                count(images.anomalous, 'anomalous'),
                ...(images.unreadable > 0 ? [count(images.unreadable, 'could not be judged')] : []),
              ].join(', ')}
            </p>
          )}
          <p class="hint">
            {job.started_at && job.ended_at ? `Judged in ${duration((Date.parse(job.ended_at) - Date.parse(job.started_at)) / 1000)}, ${when(job.ended_at)}` : ''}
          </p>
        </div>
      </div>
      <div class="actions">
        <button type="button" class="primary" disabled={acting} onClick={() => void save('csv')}>
          <Icon name="download" /> Download CSV
        </button>
        <button type="button" disabled={acting} onClick={() => void save('jsonl')}>
          <Icon name="download" /> Download JSON lines
        </button>
      </div>
    </section>
  );
}
