// The list of the models that the service keeps under names.

import { useRef, useState } from 'preact/hooks';
import { request, requestJSON } from './api';
import { bytes, count, score, when } from './format';
import { shortSize } from './preparation';
import { go, useLoaded } from './store';
import type { Entry } from './types';
import { Dialog, Empty, ErrorBox, Icon, Loading } from './ui';

export function ModelsView({ keepsModels }: { keepsModels: boolean }) {
  return (
    <div class="stack">
      <header class="view-head">
        <h1>Models</h1>
        <p class="lead">The models that this service keeps under names.</p>
      </header>
      {keepsModels ? (
        <ModelList />
      ) : (
        <div class="card">
          <Empty icon="models" title="This service keeps no named models">
            <p>
              It was started without a folder for them. Start it with <code>anomaly serve --models DIR</code>, and give a training a name. Thresholds, feedback and versions need that.
            </p>
            <p>Models of trainings can be judged with and downloaded all the same.</p>
            <a class="button primary" href="#/train">
              To the trainings
            </a>
          </Empty>
        </div>
      )}
    </div>
  );
}

function ModelList() {
  const list = useLoaded('models', (signal) => requestJSON<{ models: Entry[] }>('models', { signal }));
  const [adding, setAdding] = useState(false);
  if (list.error !== undefined) return <ErrorBox error={list.error} retry={list.reload} />;
  if (!list.value) return <Loading what="the models" />;
  const add = (
    <button type="button" onClick={() => setAdding(true)}>
      <Icon name="upload" /> Add a model file
    </button>
  );
  return (
    <>
      {list.value.models.length === 0 ? (
        <div class="card">
          <Empty icon="models" title="No models yet">
            <p>Give a training a name, and its model appears here.</p>
            <div class="actions centre">
              <a class="button primary" href="#/train">
                Train a model
              </a>
              {add}
            </div>
          </Empty>
        </div>
      ) : (
        <>
          <ul class="model-list">
            {list.value.models.map((m) => (
              <li key={m.name}>
                <a class="card" href={`#/models/${encodeURIComponent(m.name)}`}>
                  <strong>{m.name}</strong>
                  {m.state === 'ready' ? (
                    <>
                      <span class="hint">
                        {m.metadata?.training ? `${count(m.metadata.training.images, 'image')}, level ${m.metadata.training.level}, ` : ''}
                        {m.metadata ? shortSize(m.metadata) : m.format}
                      </span>
                      <span class="hint">
                        threshold {score(m.metadata?.decision?.threshold ?? m.metadata?.threshold ?? 0)} · {bytes(m.bytes)} · {when(m.modified)}
                      </span>
                    </>
                  ) : (
                    <span class={m.state === 'broken' ? 'badge failed' : 'badge queued'}>{m.state === 'broken' ? 'Cannot be used' : 'Loading'}</span>
                  )}
                  {m.error && <span class="hint bad">{m.error}</span>}
                </a>
              </li>
            ))}
          </ul>
          <div class="actions">{add}</div>
        </>
      )}
      {adding && <AddModel onClose={() => setAdding(false)} />}
    </>
  );
}

function AddModel({ onClose }: { onClose: () => void }) {
  const file = useRef<HTMLInputElement>(null);
  const [name, setName] = useState('');
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const add = async (e: Event) => {
    e.preventDefault();
    const body = file.current?.files?.[0];
    if (!body) return;
    setBusy(true);
    setError(undefined);
    try {
      await request(`models/${encodeURIComponent(name)}`, { method: 'PUT', body, headers: { 'Content-Type': 'application/octet-stream' } });
      go('models', name);
    } catch (e) {
      setError(e);
      setBusy(false);
    }
  };
  return (
    <Dialog title="Add a model file" onClose={onClose}>
      <form class="stack" onSubmit={(e) => void add(e)}>
        <label class="field">
          <span>The zip of a training, a .pt or an .onnx</span>
          <input
            ref={file}
            type="file"
            required
            accept=".zip,.pt,.onnx"
            onChange={(e) => {
              const base = e.currentTarget.files?.[0]?.name.replace(/\.\w+$/, '').toLowerCase().replace(/[^a-z0-9._-]+/g, '-').replace(/^[^a-z0-9]+|[^a-z0-9]+$/g, '');
              if (name === '' && base) setName(base);
            }}
          />
        </label>
        <label class="field">
          <span>Name</span>
          <input type="text" required value={name} onInput={(e) => setName(e.currentTarget.value.trim().toLowerCase())} />
        </label>
        {error !== undefined && <ErrorBox error={error} />}
        <div class="actions end">
          <button type="submit" class="primary" disabled={busy}>
            {busy ? 'Storing…' : 'Add'}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
