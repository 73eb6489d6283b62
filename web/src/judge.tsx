// The view in which a person judges images.

import { useEffect, useRef, useState } from 'preact/hooks';
import { requestBlob, requestJSON } from './api';
import { CameraButton } from './camera';
import { download } from './files';
import { count, score } from './format';
import { jobTitle } from './joblist';
import { addImages, again, arranged, boxesStore, clearImages, judged, opacityStore, scoreOf, setSource, source, sourceTitle, type Filter, type Judged, type Order, type Source } from './judging';
import { KeepModel } from './keep';
import { Picture } from './picture';
import { csv, json, report } from './report';
import { Detail, verdictName } from './detail';
import { Store, useLoaded, useStore } from './store';
import type { Entry, Job } from './types';
import { Dropzone, Empty, ErrorBox, Icon, Loading } from './ui';

const orderStore = new Store<Order>('added');
const filterStore = new Store<Filter>('all');
const selectedStore = new Store<number | undefined>(undefined);

export function JudgeView({ keepsModels }: { keepsModels: boolean }) {
  const s = useStore(source);
  const list = useStore(judged);
  return (
    <div class="stack">
      <header class="view-head">
        <h1>Judge images</h1>
        <p class="lead">Is it normal? If not, where?</p>
      </header>
      <SourcePicker keepsModels={keepsModels} />
      {s && (
        <Dropzone compact={list.length > 0} folders title="Drop images to judge" hint="One or many, or a folder. The images are not stored." onFiles={(f) => void addImages(f)}>
          <CameraButton onPicture={(file) => void addImages([{ path: file.name, file }])} />
        </Dropzone>
      )}
      {s && list.length > 0 && <Results list={list} title={sourceTitle(s)} source={s} />}
    </div>
  );
}

function SourcePicker({ keepsModels }: { keepsModels: boolean }) {
  const s = useStore(source);
  const file = useRef<HTMLInputElement>(null);
  const models = useLoaded('models', (signal) => (keepsModels ? requestJSON<{ models: Entry[] }>('models', { signal }) : Promise.resolve({ models: [] })));
  const jobs = useLoaded('jobs', (signal) => requestJSON<{ jobs: Job[] }>('jobs', { signal }));
  const ready = models.value?.models.filter((m) => m.state === 'ready') ?? [];
  const trained = jobs.value?.jobs.filter((j) => j.state === 'succeeded' && !j.attached && !j.name) ?? [];
  useEffect(() => {
    // With a single model there is nothing to choose.
    if (s === undefined && models.value && jobs.value) {
      if (ready.length === 1 && trained.length === 0) setSource({ kind: 'model', name: ready[0]!.name });
      if (ready.length === 0 && trained.length === 1) setSource({ kind: 'job', id: trained[0]!.id, title: jobTitle(trained[0]!) });
    }
  }, [models.value, jobs.value]);
  if (models.error !== undefined || jobs.error !== undefined) {
    return (
      <ErrorBox
        error={models.error ?? jobs.error}
        retry={() => {
          models.reload();
          jobs.reload();
        }}
      />
    );
  }
  if (!models.value || !jobs.value) return <Loading what="the models" />;
  const value = s === undefined ? '' : s.kind === 'model' ? `model ${s.name}` : s.kind === 'job' ? `job ${s.id}` : 'file';
  const choose = (v: string) => {
    const [kind, key] = [v.split(' ')[0], v.slice(v.indexOf(' ') + 1)];
    if (kind === 'model') setSource({ kind: 'model', name: key });
    if (kind === 'job') {
      const job = trained.find((j) => j.id === key);
      if (job) setSource({ kind: 'job', id: job.id, title: jobTitle(job) });
    }
    if (v === '') setSource(undefined);
  };
  const nothing = ready.length === 0 && trained.length === 0;
  return (
    <section class="card source" aria-label="Model">
      {nothing && s === undefined && (
        <Empty icon="models" title="No model yet">
          <p>Train one from images of normal parts, or use a model file that you have.</p>
        </Empty>
      )}
      <div class={nothing && s === undefined ? 'actions centre' : 'fields'}>
        {!(nothing && s === undefined) && (
          <label class="field">
            <span>Model</span>
            <select value={value} onChange={(e) => choose(e.currentTarget.value)}>
              <option value="">Choose a model…</option>
              {ready.length > 0 && (
                <optgroup label="Models by name">
                  {ready.map((m) => (
                    <option key={m.name} value={`model ${m.name}`}>
                      {m.name}
                    </option>
                  ))}
                </optgroup>
              )}
              {trained.length > 0 && (
                <optgroup label="Trainings without a name">
                  {trained.map((j) => (
                    <option key={j.id} value={`job ${j.id}`}>
                      {jobTitle(j)}
                    </option>
                  ))}
                </optgroup>
              )}
              {s?.kind === 'file' && (
                <optgroup label="A file of yours">
                  <option value="file">{s.file.name}</option>
                </optgroup>
              )}
            </select>
          </label>
        )}
        {nothing && s === undefined && (
          <a class="button primary" href="#/train">
            Train a model
          </a>
        )}
        <button type="button" class="beside-field" onClick={() => file.current?.click()}>
          <Icon name="upload" /> Use a model file
        </button>
        <input
          ref={file}
          type="file"
          hidden
          data-model=""
          accept=".zip,.pt,.onnx"
          aria-label="A model file"
          onChange={(e) => {
            const chosen = e.currentTarget.files?.[0];
            e.currentTarget.value = '';
            if (chosen) setSource({ kind: 'file', file: chosen });
          }}
        />
        {s?.kind === 'model' && (
          <a class="field-link" href={`#/models/${encodeURIComponent(s.name)}`}>
            Threshold, versions and downloads
          </a>
        )}
      </div>
      {s !== undefined && s.kind !== 'model' && keepsModels && (
        <KeepModel key={sourceTitle(s)} load={() => (s.kind === 'job' ? requestBlob(`jobs/${s.id}/model`) : Promise.resolve(s.file))} />
      )}
    </section>
  );
}

function Results({ list, title, source }: { list: Judged[]; title: string; source: Source }) {
  const order = useStore(orderStore);
  const filter = useStore(filterStore);
  const opacity = useStore(opacityStore);
  const boxes = useStore(boxesStore);
  const selected = useStore(selectedStore);
  const [error, setError] = useState<unknown>();
  const done = list.filter((j) => j.state === 'done');
  const bad = done.filter((j) => j.verdict?.is_anomaly).length;
  const failed = list.filter((j) => j.state === 'error').length;
  const busy = list.length - done.length - failed;
  const shown = arranged(list, order, filter);
  const current = shown.find((j) => j.id === selected) ?? shown[0];
  const save = async (kind: 'csv' | 'json' | 'html') => {
    setError(undefined);
    try {
      const name = `verdicts-${title.replace(/\W+/g, '-')}`;
      if (kind === 'csv') download(new Blob([csv(shown)], { type: 'text/csv' }), `${name}.csv`);
      if (kind === 'json') download(new Blob([json(shown)], { type: 'application/json' }), `${name}.json`);
      if (kind === 'html') download(new Blob([await report(shown, title, opacity)], { type: 'text/html' }), `${name}.html`);
    } catch (e) {
      setError(e);
    }
  };
  const step = (by: number) => {
    const at = shown.findIndex((j) => j.id === current?.id);
    const to = shown[Math.min(Math.max(at + by, 0), shown.length - 1)];
    if (to) selectedStore.set(to.id);
  };
  const filters: [Filter, string, number][] = [
    ['all', 'All', list.length],
    ['anomalous', 'Anomalous', bad],
    ['normal', 'Normal', done.length - bad],
    ['error', 'Not readable', failed],
  ];
  return (
    <>
      <p class="visually-hidden" role="status">
        {busy > 0 ? `Judging, ${busy} left.` : `${done.length} images judged, ${bad} anomalous.`}
      </p>
      <div class="toolbar">
        <div class="segments" role="group" aria-label="Show">
          {filters.map(
            ([key, label, n]) =>
              (key !== 'error' || n > 0) && (
                <button type="button" key={key} aria-pressed={filter === key} onClick={() => filterStore.set(key)}>
                  {label} <span class="count">{n}</span>
                </button>
              ),
          )}
        </div>
        <label class="inline">
          <span>Sort</span>
          <select value={order} onChange={(e) => orderStore.set(e.currentTarget.value as Order)}>
            <option value="added">as added</option>
            <option value="highest">highest score first</option>
            <option value="lowest">lowest score first</option>
            <option value="name">by name</option>
          </select>
        </label>
        <div class="actions end grow">
          <button type="button" class="small" onClick={() => void save('csv')}>
            CSV
          </button>
          <button type="button" class="small" onClick={() => void save('json')}>
            JSON
          </button>
          <button type="button" class="small" onClick={() => void save('html')}>
            Report
          </button>
          <button type="button" class="small" onClick={clearImages}>
            Clear
          </button>
        </div>
      </div>
      {error !== undefined && <ErrorBox error={error} />}
      {shown.length === 0 || !current ? (
        <Empty icon="judge" title={`None of the ${count(list.length, 'image')} is in this list`} />
      ) : (
        <div class="results">
          <Detail image={current} source={source} onStep={step} position={`${shown.findIndex((j) => j.id === current.id) + 1} of ${shown.length}`} />
          <ul class="tiles" aria-label="Judged images">
            {shown.map((j) => (
              <li key={j.id}>
                <button type="button" class={`tile ${tone(j)}`} aria-current={j.id === current.id} onClick={() => selectedStore.set(j.id)}>
                  <span class="tile-picture">
                    <Picture image={j} opacity={opacity} boxes={boxes} small />
                  </span>
                  <span class="tile-text">
                    <span class="tile-verdict">
                      {j.state === 'done' && <Icon name={j.verdict?.is_anomaly ? 'alert' : 'ok'} />}
                      {verdictName(j)}
                    </span>
                    <span class="tile-name">{j.name.split('/').pop()}</span>
                    <span class="tile-score">{j.verdict ? score(scoreOf(j.verdict)) : ''}</span>
                  </span>
                </button>
              </li>
            ))}
          </ul>
        </div>
      )}
      {failed > 0 && busy === 0 && (
        <div class="actions">
          <button type="button" class="small" onClick={again}>
            Judge all again
          </button>
        </div>
      )}
    </>
  );
}

export function tone(j: Judged): string {
  return j.state === 'done' ? (j.verdict?.is_anomaly ? 'bad' : 'good') : j.state === 'error' ? 'failed' : 'waiting';
}
