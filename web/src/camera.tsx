// Pictures from the camera. Browsers give pages a live picture only over HTTPS or on the
// same machine; elsewhere the camera of a telephone opens as a file input.

import { useEffect, useRef, useState } from 'preact/hooks';
import { Dialog, ErrorBox, Icon } from './ui';

export function CameraButton({ onPicture }: { onPicture: (file: File) => void }) {
  const [open, setOpen] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <button type="button" onClick={() => ('mediaDevices' in navigator ? setOpen(true) : input.current?.click())}>
        <Icon name="camera" /> Camera
      </button>
      <input
        ref={input}
        type="file"
        accept="image/*"
        capture="environment"
        hidden
        aria-label="A picture from the camera"
        onChange={(e) => {
          const file = e.currentTarget.files?.[0];
          e.currentTarget.value = '';
          if (file) onPicture(file);
        }}
      />
      {open && <Camera onPicture={onPicture} onClose={() => setOpen(false)} />}
    </>
  );
}

function Camera({ onPicture, onClose }: { onPicture: (file: File) => void; onClose: () => void }) {
  const video = useRef<HTMLVideoElement>(null);
  const [error, setError] = useState<Error>();
  const [ready, setReady] = useState(false);
  const [taken, setTaken] = useState(0);
  useEffect(() => {
    let stream: MediaStream | undefined;
    let gone = false;
    navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment', width: { ideal: 1920 } } }).then(
      (s) => {
        stream = s;
        if (gone || !video.current) return s.getTracks().forEach((t) => t.stop());
        video.current.srcObject = s;
        void video.current.play().then(() => setReady(true));
      },
      (e: DOMException) =>
        setError(
          new Error(
            e.name === 'NotAllowedError'
              ? 'The browser does not allow this page to use the camera. Allow it in the address bar, or choose a file.'
              : 'There is no camera that can be used. Connect one and try again, or choose a file.',
          ),
        ),
    );
    return () => {
      gone = true;
      stream?.getTracks().forEach((t) => t.stop());
    };
  }, []);
  const take = () => {
    const v = video.current;
    if (!v) return;
    const canvas = document.createElement('canvas');
    canvas.width = v.videoWidth;
    canvas.height = v.videoHeight;
    canvas.getContext('2d')?.drawImage(v, 0, 0);
    canvas.toBlob((blob) => {
      if (!blob) return;
      const time = new Date().toISOString().slice(0, 19).replaceAll(':', '-');
      onPicture(new File([blob], `camera-${time}.png`, { type: 'image/png' }));
      setTaken((n) => n + 1);
    }, 'image/png'); // without loss: compression would be an anomaly
  };
  return (
    <Dialog title="Camera" onClose={onClose}>
      {error ? (
        <ErrorBox error={error} />
      ) : (
        <>
          <video ref={video} muted playsInline class="camera" aria-label="The camera's picture" />
          <div class="actions end">
            <span class="hint" aria-live="polite">
              {taken > 0 ? `${taken} taken` : ''}
            </span>
            <button type="button" onClick={onClose}>
              Done
            </button>
            <button type="button" class="primary" disabled={!ready} onClick={take}>
              Take a picture
            </button>
          </div>
        </>
      )}
    </Dialog>
  );
}
