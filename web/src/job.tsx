// The view of one training: progress while it runs, then what to do with its model.

import { useEffect, useState } from 'preact/hooks';
import { ApiError, follow, request, requestBlob, requestJSON } from './api';
import { LossChart } from './chart';
import { download } from './files';
import { duration, when } from './format';
import { DetectionResults, imagesSoFar } from './detection';
import { jobTitle, judges, remaining, StateBadge } from './joblist';
import { setSource } from './judging';
import { go } from './store';
import type { Job } from './types';
import { capital, ConfirmButton, Empty, ErrorBox, Icon, Loading, Notice, Progress, Warnings } from './ui';
import { KeepModel } from './keep';

const final = (job: Job) => job.state === 'succeeded' || job.state === 'failed' || job.state === 'cancelled';

export function JobView({ id, keepsModels }: { id: string; keepsModels: boolean }) {
  const [job, setJob] = useState<Job>();
  const [losses, setLosses] = useState<number[]>([]);
  const [error, setError] = useState<unknown>();
  const [connected, setConnected] = useState(true);
  const [acting, setActing] = useState(false);
  useEffect(() => {
    const abort = new AbortController();
    setJob(undefined);
    setLosses([]);
    setError(undefined);
    const receive = (j: Job) => {
      setJob(j);
      setLosses((old) => {
        if (j.losses) return j.losses;
        const { epoch, loss } = j.progress;
        if (loss === null || epoch === 0) return old;
        const next = old.slice(0, epoch);
        while (next.length < epoch) next.push(loss);
        next[epoch - 1] = loss;
        return next;
      });
    };
    const run = async () => {
      const path = `jobs/${encodeURIComponent(id)}`;
      receive(await requestJSON<Job>(path, { signal: abort.signal }));
      await follow(
        `${path}/events`,
        abort.signal,
        (e) => {
          const j = JSON.parse(e.data) as Job;
          receive(j);
          return final(j);
        },
        setConnected,
      );
    };
    run().catch((e: unknown) => {
      if (abort.signal.aborted) return;
      if (e instanceof ApiError && e.status === 404) setJob(undefined);
      setError(e);
    });
    return () => abort.abort();
  }, [id]);
  const act = async (work: () => Promise<unknown>) => {
    setActing(true);
    setError(undefined);
    try {
      await work();
    } catch (e) {
      setError(e);
    } finally {
      setActing(false);
    }
  };
  const remove = () => request(`jobs/${encodeURIComponent(id)}`, { method: 'DELETE' });
  if (!job) {
    if (error instanceof ApiError && error.status === 404) {
      return (
        <Empty icon="train" title="This training is not here any more">
          <p>It was removed, its model went to the program that asked for it, or the service has been started anew without a folder for jobs (serve --data).</p>
          <a class="button" href="#/train">
            Back to the trainings
          </a>
        </Empty>
      );
    }
    return error !== undefined ? <ErrorBox error={error} /> : <Loading what="the training" />;
  }
  const p = job.progress;
  const detects = judges(job);
  const word = detects ? 'detection' : 'training';
  return (
    <div class="stack narrow">
      <a class="back" href="#/train">
        <Icon name="back" /> All trainings
      </a>
      <header class="view-head row">
        <h1>{jobTitle(job)}</h1>
        <StateBadge job={job} />
      </header>
      {error !== undefined && <ErrorBox error={error} />}
      {!connected && !final(job) && (
        <Notice kind="warn">
          <p>The connection to the service was lost. The {word} goes on; this page connects again by itself.</p>
        </Notice>
      )}
      {job.state === 'queued' && (
        <div class="card">
          <p>
            The images are stored safely. The {word} begins when the ones before it have ended. You can close this page and come back.
          </p>
          <Progress value={null} label="Waiting" />
        </div>
      )}
      {job.state === 'running' && (
        <section class="card stack" aria-label="Progress">
          <div class="progress-head">
            <div>
              <p class="phase" aria-live="polite">
                {capital(p.phase || 'starting')}
              </p>
              <p class="hint">
                {[imagesSoFar(p), p.epochs > 0 ? `epoch ${p.epoch} of ${p.epochs}` : '', job.attempts > 1 ? `attempt ${job.attempts}` : ''].filter(Boolean).join(' · ') ||
                  (job.attached ? 'A program waits for this training.' : 'You can close this page and come back.')}
              </p>
            </div>
            <p class="big-number">
              {Math.round(p.fraction * 100)}
              <small> %</small>
            </p>
          </div>
          <Progress value={p.fraction} label={`Progress of the ${word}`} />
          <p class="hint">{remaining(job) || (detects ? '' : 'The time left is known once the epochs run.')}</p>
        </section>
      )}
      {job.state === 'failed' && <ErrorBox error={new Error(job.error ?? `The ${word} failed.`)} title={`The ${word} failed`} />}
      {job.state === 'cancelled' && (
        <Notice>
          <p>{detects ? 'This detection was cancelled. It left no results.' : 'This training was cancelled. It left no model.'}</p>
        </Notice>
      )}
      {job.state === 'succeeded' && job.attached && (
        <Notice kind="good">
          <p>This training has ended. Its model went to the program that asked for it.</p>
        </Notice>
      )}
      {job.state === 'succeeded' && detects && <DetectionResults job={job} acting={acting} act={act} />}
      {job.state === 'succeeded' && !job.attached && !detects && (
        <section class="card stack success">
          <div class="row">
            <span class="success-mark">
              <Icon name="ok" />
            </span>
            <div>
              <h2>The model is ready</h2>
              <p class="hint">
                {job.started_at && job.ended_at ? `Trained in ${duration((Date.parse(job.ended_at) - Date.parse(job.started_at)) / 1000)}` : 'Trained'}
                {job.ended_at ? `, ${when(job.ended_at)}` : ''}
              </p>
            </div>
          </div>
          <div class="actions">
            <button
              type="button"
              class="primary"
              onClick={() => {
                setSource(job.name ? { kind: 'model', name: job.name } : { kind: 'job', id: job.id, title: jobTitle(job) });
                go('judge');
              }}
            >
              Judge images
            </button>
            {job.name && (
              <a class="button" href={`#/models/${encodeURIComponent(job.name)}`}>
                Open the model
              </a>
            )}
            <button
              type="button"
              disabled={acting}
              onClick={() => void act(async () => download(await requestBlob(`jobs/${job.id}/model`), `${job.name ?? 'anomaly_detection_model'}.zip`))}
            >
              <Icon name="download" /> Download
            </button>
          </div>
          {!job.name && keepsModels && <KeepModel load={() => requestBlob(`jobs/${job.id}/model`)} />}
        </section>
      )}
      <Warnings list={job.warnings} />
      {!detects && (losses.length > 0 || job.state === 'running') && (
        <section class="card">
          <h2>Learning curve</h2>
          <p class="hint">The error of the reconstruction falls while the model learns.</p>
          <LossChart losses={losses} epochs={p.epochs} />
        </section>
      )}
      <footer class="actions end">
        {final(job) ? (
          <ConfirmButton
            small
            label={`Remove this ${word}`}
            question={detects ? 'The detection and its results are removed.' : job.name ? 'The training and its zip are removed. The model under its name stays.' : 'The training and its model are removed.'}
            onConfirm={() => void act(async () => (await remove(), go('train')))}
          />
        ) : (
          <ConfirmButton small label={`Cancel the ${word}`} question={detects ? 'The results so far are lost.' : 'What it has learned so far is lost.'} onConfirm={() => void act(async () => setJob((await (await remove()).json()) as Job))} />
        )}
      </footer>
    </div>
  );
}
