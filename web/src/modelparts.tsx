// Smaller cards of a model: what it is, its files, programs that use it, its versions.

import { useState } from 'preact/hooks';
import { hasToken, requestBlob, requestJSON } from './api';
import { download } from './files';
import { bytes, count, percent, score, when } from './format';
import { levels } from './estimate';
import { preparation } from './preparation';
import { snippets } from './snippets';
import type { Entry, Version } from './types';
import { capital, ErrorBox, Icon, Warnings } from './ui';

export function AboutCard({ entry }: { entry: Entry }) {
  const m = entry.metadata;
  const t = m?.training;
  const d = m?.decision;
  const rows: [string, string][] = [];
  if (t) {
    rows.push(['Trained on', count(t.images, 'image') + (t.skipped > 0 ? `, ${t.skipped} skipped` : '')]);
    rows.push(['Level', `${t.level}, ${(levels.find((l) => l.level === t.level)?.name ?? '').toLowerCase()}`]);
    if (t.ended && t.ended !== 'complete') rows.push(['Ended', t.ended === 'max_seconds' ? 'when its time was up' : t.ended]);
  }
  if (m) rows.push(...preparation(m));
  if (d) {
    const of = d.calibrated_on ? 'other images' : 'training images';
    if (d.normals) rows.push(['Threshold from', `${count(d.normals, 'score')} of ${of}`]);
    if (d.false_alarm_rate) rows.push(['False alarms aimed at', percent(d.false_alarm_rate)]);
    rows.push(['Decides by', d.measure === 'patch_mahalanobis' ? 'features of patches' : d.measure === 'tiled_patch_mahalanobis' ? 'features of patches, tile by tile' : d.measure === 'mse' ? 'the mean squared error' : d.measure]);
  } else if (m) {
    rows.push(['Decides by', 'the mean squared error']);
  }
  rows.push(['File', `${entry.format}, ${bytes(entry.bytes)}`]);
  rows.push(['Stored', when(entry.modified)]);
  return (
    <section class="card" aria-labelledby="about-title">
      <h2 id="about-title">About</h2>
      <dl class="facts">
        {rows.map(([k, v]) => (
          <div key={k}>
            <dt>{k}</dt>
            <dd>{v}</dd>
          </div>
        ))}
        <div>
          <dt>SHA-256</dt>
          <dd>
            <code title={entry.sha256}>{entry.sha256?.slice(0, 12)}…</code>
          </dd>
        </div>
      </dl>
      {t?.skipped_files && t.skipped_files.length > 0 && (
        <details class="skipped">
          <summary>{count(t.skipped, 'skipped file')}</summary>
          <ul>
            {t.skipped_files.map((f) => (
              <li key={f.name}>
                <span class="path">{f.name}</span> <span class="hint">{f.reason}</span>
              </li>
            ))}
          </ul>
        </details>
      )}
      <Warnings list={[...(t?.warnings ?? []), ...(d?.calibrated_on?.warnings ?? [])]} />
    </section>
  );
}

const formats: [string, string, string, string][] = [
  ['zip', 'Everything', 'the zip of a training', '.zip'],
  ['onnx', 'ONNX', 'for prepared images', '.onnx'],
  ['onnx-image', 'ONNX for images', 'resizes and decides by itself', '_image.onnx'],
  ['pt', 'PyTorch', 'the checkpoint', '.pt'],
  ['triton', 'Triton', 'an entry of its model repository', '_triton.zip'],
];

export function DownloadCard({ name }: { name: string }) {
  const [busy, setBusy] = useState('');
  const [error, setError] = useState<unknown>();
  const get = async (format: string, ending: string) => {
    setBusy(format);
    setError(undefined);
    try {
      download(await requestBlob(`models/${encodeURIComponent(name)}/file?format=${format}`), name + ending);
    } catch (e) {
      setError(e);
    } finally {
      setBusy('');
    }
  };
  return (
    <section class="card" aria-labelledby="download-title">
      <h2 id="download-title">Take it away</h2>
      <ul class="downloads">
        {formats.map(([format, title, about, ending]) => (
          <li key={format}>
            <button type="button" disabled={busy !== ''} onClick={() => void get(format, ending)}>
              <Icon name="download" />
              <span>
                {busy === format ? 'Preparing…' : title}
                <small>{about}</small>
              </span>
            </button>
          </li>
        ))}
      </ul>
      {error !== undefined && <ErrorBox error={error} />}
    </section>
  );
}

export function SnippetCard({ name }: { name: string }) {
  const list = snippets(new URL('.', location.href).href.split('#')[0]!, name, hasToken());
  const [at, setAt] = useState(0);
  const [copied, setCopied] = useState(false);
  const s = list[at]!;
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(s.text);
      setCopied(true);
    } catch {
      // Without HTTPS there is no clipboard: the text is selected for the person to copy.
      const code = document.querySelector('#snippet');
      if (code) getSelection()?.selectAllChildren(code);
    }
  };
  return (
    <section class="card" aria-labelledby="snippet-title">
      <div class="card-head">
        <h2 id="snippet-title">Use it from a program</h2>
        <div class="segments" role="group" aria-label="Language">
          {list.map((l, i) => (
            <button
              type="button"
              key={l.title}
              aria-pressed={i === at}
              onClick={() => {
                setAt(i);
                setCopied(false);
              }}
            >
              {l.title}
            </button>
          ))}
        </div>
      </div>
      <pre class="snippet" tabIndex={0} aria-label={`Program in ${s.title}`}>
        <code id="snippet">{s.text}</code>
      </pre>
      <div class="actions">
        <button type="button" class="small" onClick={() => void copy()}>
          <Icon name="copy" /> {copied ? 'Copied' : 'Copy'}
        </button>
        {hasToken() && <span class="hint">Set TOKEN to the token of the service first.</span>}
      </div>
    </section>
  );
}

export function VersionsCard({ name, versions, onChanged }: { name: string; versions: Version[]; onChanged: () => void }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const restore = async (sha256: string) => {
    setBusy(true);
    setError(undefined);
    try {
      await requestJSON<Entry>(`models/${encodeURIComponent(name)}/versions/${sha256}/restore`, { method: 'POST' });
      onChanged();
    } catch (e) {
      setError(e);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section class="card" aria-labelledby="versions-title">
      <h2 id="versions-title">Versions</h2>
      {error !== undefined && <ErrorBox error={error} />}
      <ol class="versions">
        {versions.map((v) => (
          <li key={v.sha256} class={v.current ? 'current' : ''}>
            <div>
              <p>
                <strong title={v.reason}>{capital(v.reason.replace(/\b([0-9a-f]{6})[0-9a-f]{26}\b/, '$1'))}</strong>
              </p>
              <p class="hint">
                {when(v.created_at)} · threshold {score(v.threshold)}
              </p>
            </div>
            {v.current ? (
              <span class="badge succeeded">in use</span>
            ) : (
              <button type="button" class="small" disabled={busy} aria-label={`Restore the version ${v.reason} of ${when(v.created_at)}`} onClick={() => void restore(v.sha256)}>
                Restore
              </button>
            )}
          </li>
        ))}
      </ol>
    </section>
  );
}
