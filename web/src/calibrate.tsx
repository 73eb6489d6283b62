// Computing a new threshold from other normal images.

import { useRef, useState } from 'preact/hooks';
import { isAbort, upload } from './api';
import { preview, type PathFileList } from './files';
import { count, score } from './format';
import type { CalibrationAnswer } from './types';
import { Dropzone, ErrorBox, Notice, Progress, Warnings } from './ui';
import { zipFiles } from './zip';

export function CalibrateCard({ name, onChanged }: { name: string; onChanged: () => void }) {
  const [stage, setStage] = useState<{ what: string; share: number | null }>();
  const [done, setDone] = useState<CalibrationAnswer>();
  const [error, setError] = useState<unknown>();
  const abort = useRef<AbortController | undefined>(undefined);
  const calibrate = async (files: PathFileList) => {
    setError(undefined);
    setDone(undefined);
    const a = (abort.current = new AbortController());
    try {
      setStage({ what: 'Looking at the images', share: null });
      const images = await preview(files, () => undefined);
      const n = images.items.filter((i) => i.kind.use === 'image').length + images.unread;
      if (n < 8) throw new Error(`Calibration needs 8 or more normal images, and ${n === 0 ? 'none' : `only ${n}`} of these can be read. Choose more.`);
      const zip = images.zip ?? (await zipFiles(images.files, (share) => setStage({ what: 'Packing', share }), a.signal));
      const form = new FormData();
      form.append('zipFile', zip, 'images.zip');
      const answer = await upload<CalibrationAnswer>(
        `models/${encodeURIComponent(name)}/calibrate`,
        form,
        (share) => setStage(share < 1 ? { what: 'Uploading', share } : { what: 'Calibrating', share: null }),
        a.signal,
      );
      setDone(answer);
      onChanged();
    } catch (e) {
      if (!isAbort(e)) setError(e);
    } finally {
      setStage(undefined);
    }
  };
  return (
    <section class="card stack tight" aria-labelledby="calibrate-title">
      <h2 id="calibrate-title">Calibrate</h2>
      <p class="hint">Has the camera or the light changed? Set the threshold anew from normal images that the model was not trained on. Nothing is trained.</p>
      {error !== undefined && <ErrorBox error={error} />}
      {done && (
        <>
          <Notice kind="good">
            <p>
              Calibrated on {count(done.report.images, 'image')}: the threshold is {score(done.report.threshold_after)}, it was {score(done.report.threshold_before)}.
            </p>
          </Notice>
          <Warnings list={done.warnings} />
        </>
      )}
      {stage ? (
        <div class="uploading" role="status">
          <span>{stage.what}…</span>
          <Progress value={stage.share} label={stage.what} />
          <button type="button" class="small" onClick={() => abort.current?.abort()}>
            Cancel
          </button>
        </div>
      ) : (
        <Dropzone folders title="Drop normal images" hint="8 or more; 50 are better." onFiles={(f) => void calibrate(f)} />
      )}
    </section>
  );
}
