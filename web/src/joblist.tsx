// The list of trainings, which refreshes itself.

import { useEffect, useState } from 'preact/hooks';
import { requestJSON } from './api';
import { duration, when } from './format';
import type { Job } from './types';
import { capital, Empty, ErrorBox, Loading, Progress } from './ui';

export const stateNames: Record<Job['state'], string> = {
  queued: 'Waiting',
  running: 'Training',
  succeeded: 'Ready',
  failed: 'Failed',
  cancelled: 'Cancelled',
};

/** Whether a job judges images; the others train. */
export const judges = (job: Job) => job.kind === 'detect';

export function StateBadge({ job }: { job: Job }) {
  const names = judges(job) ? { ...stateNames, running: 'Judging', succeeded: 'Done' } : stateNames;
  return <span class={`badge ${job.state}`}>{names[job.state]}</span>;
}

export function jobTitle(job: Job): string {
  if (judges(job)) return `Images judged by ${job.name ?? 'a model'}`;
  return job.name ?? `Training ${job.id.slice(0, 6)}`;
}

export function remaining(job: Job): string {
  const s = job.progress?.seconds_left;
  return s === null || s === undefined ? '' : `${duration(s)} left`;
}

export function JobList() {
  const [jobs, setJobs] = useState<Job[]>();
  const [error, setError] = useState<unknown>();
  const [round, setRound] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    const poll = async () => {
      try {
        const { jobs } = await requestJSON<{ jobs: Job[] }>('jobs', { signal: abort.signal });
        setJobs(jobs);
        setError(undefined);
        const busy = jobs.some((j) => j.state === 'running' || j.state === 'queued');
        timer = window.setTimeout(() => void poll(), busy ? 2000 : 15000);
      } catch (e) {
        if (!abort.signal.aborted) {
          setError(e);
          timer = window.setTimeout(() => void poll(), 15000);
        }
      }
    };
    void poll();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [round]);
  return (
    <section class="card jobs" aria-labelledby="jobs-title">
      <h2 id="jobs-title">Trainings</h2>
      {error !== undefined && <ErrorBox error={error} retry={() => setRound((n) => n + 1)} />}
      {jobs === undefined ? (
        error === undefined && <Loading what="the trainings" />
      ) : jobs.length === 0 ? (
        <Empty icon="train" title="No trainings yet">
          <p>Your trainings appear here. They go on when you close this page.</p>
        </Empty>
      ) : (
        <ul class="job-list">
          {jobs.slice(0, 100).map((job) => (
            <li key={job.id}>
              <a href={`#/jobs/${job.id}`}>
                <span class="job-name">{jobTitle(job)}</span>
                <StateBadge job={job} />
                <span class="hint">
                  {job.state === 'running'
                    ? [capital(job.progress.phase || 'starting'), remaining(job)].filter(Boolean).join(' · ')
                    : job.state === 'failed'
                      ? job.error
                      : when(job.created_at)}
                </span>
                {job.state === 'running' && <Progress value={job.progress.fraction} label={`Progress of ${jobTitle(job)}`} />}
              </a>
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}
