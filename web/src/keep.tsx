// Storing a model under a name.

import { useState } from 'preact/hooks';
import { request } from './api';
import { go } from './store';
import { ErrorBox } from './ui';

export function KeepModel({ load }: { load: () => Promise<Blob> }) {
  const [name, setName] = useState('');
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const keep = async (e: Event) => {
    e.preventDefault();
    setBusy(true);
    setError(undefined);
    try {
      await request(`models/${encodeURIComponent(name)}`, { method: 'PUT', body: await load(), headers: { 'Content-Type': 'application/octet-stream' } });
      go('models', name);
    } catch (e) {
      setError(e);
    } finally {
      setBusy(false);
    }
  };
  return (
    <form class="inline-form" onSubmit={(e) => void keep(e)}>
      <label>
        Keep it under a name
        <input type="text" required value={name} placeholder="for example tiles" onInput={(e) => setName(e.currentTarget.value.trim().toLowerCase())} />
      </label>
      <button type="submit" disabled={busy || name === ''}>
        {busy ? 'Storing…' : 'Keep'}
      </button>
      {error !== undefined && <ErrorBox error={error} />}
    </form>
  );
}
