// The parts that all views are made of.

import type { ComponentChildren, TargetedEvent } from 'preact';
import { useEffect, useId, useRef, useState } from 'preact/hooks';
import { ApiError, sentence } from './api';
import { collectDrop, type PathFileList } from './files';

const icons = {
  train: 'M4 18l5-6 4 3 7-9M15 6h5v5',
  judge: 'M11 4a7 7 0 105 12l4 4M8.500 11l2 2 3.500-4',
  models: 'M12 3l8 4.500v9L12 21l-8-4.500v-9zM4 7.500l8 4.500 8-4.500M12 12v9',
  ok: 'M5 12.500l4.500 4.500L19 7.500',
  alert: 'M12 4l9 16H3zM12 10v5M12 17.500v.5',
  close: 'M6 6l12 12M18 6L6 18',
  download: 'M12 4v11M7 11l5 5 5-5M5 20h14',
  camera: 'M4 8h4l2-3h4l2 3h4v11H4zM12 10.500a3 3 0 100 6 3 3 0 000-6z',
  upload: 'M12 16V5M7 9l5-5 5 5M5 20h14',
  trash: 'M5 7h14M10 7V5h4v2M7 7l1 13h8l1-13',
  back: 'M14 6l-6 6 6 6',
  copy: 'M9 9h10v11H9zM15 9V4H5v11h4',
  info: 'M12 3.500a8.500 8.500 0 100 17 8.500 8.500 0 000-17zM12 11v5M12 7.800v.4',
};
export type IconName = keyof typeof icons;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path d={icons[name]} />
    </svg>
  );
}

export function ErrorBox({ error, retry, title }: { error: unknown; retry?: () => void; title?: string }) {
  const quick = error instanceof ApiError && (error.status === 0 || error.status === 503);
  return (
    <div class="notice bad" role="alert">
      <Icon name="alert" />
      <div>
        {title && <strong>{title}</strong>}
        <p>{sentence(error)}</p>
        {retry && (
          <button type="button" class="small" onClick={retry}>
            {quick ? 'Try again' : 'Reload'}
          </button>
        )}
      </div>
    </div>
  );
}

export function Notice({ kind = 'info', children }: { kind?: 'info' | 'warn' | 'good'; children: ComponentChildren }) {
  return (
    <div class={`notice ${kind}`} role="status">
      <Icon name={kind === 'info' ? 'info' : kind === 'warn' ? 'alert' : 'ok'} />
      <div>{children}</div>
    </div>
  );
}

export function Warnings({ list }: { list?: string[] | null }) {
  if (!list || list.length === 0) return null;
  return (
    <Notice kind="warn">
      {list.length === 1 ? (
        <p>{capital(list[0]!)}</p>
      ) : (
        <ul>
          {list.map((w) => (
            <li key={w}>{capital(w)}</li>
          ))}
        </ul>
      )}
    </Notice>
  );
}

export function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function Loading({ what }: { what: string }) {
  return (
    <div class="loading" role="status">
      <span class="spinner" aria-hidden="true" />
      Loading {what}…
    </div>
  );
}

export function Empty({ icon, title, children }: { icon: IconName; title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <Icon name={icon} />
      <p class="empty-title">{title}</p>
      {children}
    </div>
  );
}

export function Progress({ value, label }: { value: number | null; label: string }) {
  const props = value === null ? {} : { value };
  return <progress max={1} aria-label={label} {...props} />;
}

interface DropzoneProps {
  title: string;
  hint: string;
  /** Whether folders can be chosen, too. */
  folders?: boolean;
  accept?: string;
  compact?: boolean;
  disabled?: boolean;
  onFiles: (files: PathFileList) => void;
  children?: ComponentChildren;
}

/** An area to drop files and folders on, with buttons that do the same. */
export function Dropzone({ title, hint, folders, accept, compact, disabled, onFiles, children }: DropzoneProps) {
  const [over, setOver] = useState(false);
  const fileInput = useRef<HTMLInputElement>(null);
  const folderInput = useRef<HTMLInputElement>(null);
  const hintID = useId();
  const chosen = (e: TargetedEvent<HTMLInputElement>) => {
    const list = [...(e.currentTarget.files ?? [])].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
    e.currentTarget.value = '';
    if (list.length > 0) onFiles(list);
  };
  const drop = async (e: DragEvent) => {
    e.preventDefault();
    setOver(false);
    if (disabled || !e.dataTransfer) return;
    const list = await collectDrop(e.dataTransfer);
    if (list.length > 0) onFiles(list);
  };
  return (
    <div
      class={`dropzone${over ? ' over' : ''}${compact ? ' compact' : ''}`}
      onDragOver={(e) => {
        e.preventDefault();
        setOver(true);
      }}
      onDragLeave={(e) => {
        if (!e.currentTarget.contains(e.relatedTarget as Node | null)) setOver(false);
      }}
      onDrop={(e) => void drop(e)}
    >
      <Icon name="upload" />
      <p class="dropzone-title">{title}</p>
      <p class="hint" id={hintID}>
        {hint}
      </p>
      <div class="actions">
        <button type="button" disabled={disabled} aria-describedby={hintID} onClick={() => fileInput.current?.click()}>
          Choose files
        </button>
        {folders && (
          <button type="button" class="wide-only" disabled={disabled} aria-describedby={hintID} onClick={() => folderInput.current?.click()}>
            Choose a folder
          </button>
        )}
        {children}
      </div>
      <input ref={fileInput} type="file" multiple hidden accept={accept} data-files="" aria-label={title} onChange={chosen} />
      {folders && (
        <input
          ref={(el) => {
            (folderInput as { current: HTMLInputElement | null }).current = el;
            el?.setAttribute('webkitdirectory', '');
          }}
          type="file"
          hidden
          aria-label={`${title}: a folder`}
          onChange={chosen}
        />
      )}
    </div>
  );
}

interface DialogProps {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
}

/** A modal dialog, which keeps the focus inside until it is closed. */
export function Dialog({ title, onClose, children }: DialogProps) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const d = ref.current;
    if (d && !d.open) d.showModal();
    return () => d?.close();
  }, []);
  return (
    <dialog
      ref={ref}
      aria-labelledby={id}
      onCancel={(e) => {
        e.preventDefault();
        onClose();
      }}
    >
      <header class="dialog-head">
        <h2 id={id}>{title}</h2>
        <button type="button" class="icon-button" aria-label="Close" onClick={onClose}>
          <Icon name="close" />
        </button>
      </header>
      {children}
    </dialog>
  );
}

/** A button that asks once more before it does something that cannot be undone. */
export function ConfirmButton({ label, question, onConfirm, small }: { label: string; question: string; onConfirm: () => void; small?: boolean }) {
  const [asking, setAsking] = useState(false);
  return (
    <>
      <button type="button" class={small ? 'danger small' : 'danger'} onClick={() => setAsking(true)}>
        {label}
      </button>
      {asking && (
        <Dialog title={label} onClose={() => setAsking(false)}>
          <p>{question}</p>
          <div class="actions end">
            <button type="button" onClick={() => setAsking(false)}>
              Keep
            </button>
            <button
              type="button"
              class="danger solid"
              onClick={() => {
                setAsking(false);
                onConfirm();
              }}
            >
              {label}
            </button>
          </div>
        </Dialog>
      )}
    </>
  );
}
