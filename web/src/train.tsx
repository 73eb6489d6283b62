// The view in which a person trains a model: images, options, and the list of trainings.

import type { TargetedSubmitEvent } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { isAbort, requestJSON, upload } from './api';
import { levels, trainingSeconds } from './estimate';
import { layoutNote, preview, thumbnail, type PathFileList, type Preview, type PreviewItem } from './files';
import { bytes, count, duration } from './format';
import { JobList } from './joblist';
import { RegionField, type Region } from './region';
import { pixelsOf, SizeField, sizeText, usualSize } from './size';
import { go, Store, useStore } from './store';
import type { Health, Job } from './types';
import { Dropzone, ErrorBox, Icon, Notice, Progress } from './ui';
import { zipFiles } from './zip';

/** The chosen images: they stay while the person looks at another view. */
const chosen = new Store<Preview | undefined>(undefined);

export function TrainView({ keepsModels }: { keepsModels: boolean }) {
  const images = useStore(chosen);
  const [looking, setLooking] = useState<number>();
  const [error, setError] = useState<unknown>();
  const take = async (files: PathFileList) => {
    setError(undefined);
    setLooking(0);
    try {
      chosen.set(await preview(files, (n) => n % 50 === 0 && setLooking(n)));
    } catch (e) {
      setError(e);
    } finally {
      setLooking(undefined);
    }
  };
  return (
    <div class="two-columns">
      <div class="stack">
        <header class="view-head">
          <h1>Train a model</h1>
          <p class="lead">Show it what is normal. It learns to find everything that is not.</p>
        </header>
        {error !== undefined && <ErrorBox error={error} />}
        {looking !== undefined ? (
          <div class="card loading" role="status">
            <span class="spinner" aria-hidden="true" />
            Looking at the files{looking > 0 ? ` (${looking})` : ''}…
          </div>
        ) : images ? (
          <ChosenImages images={images} onClear={() => chosen.set(undefined)} />
        ) : (
          <Dropzone folders title="Drop images of normal parts here" hint="Photos, a folder or a zip. 20 or more; 200 are better. JPEG, PNG, BMP, TIFF, GIF, WebP or DICOM." onFiles={(f) => void take(f)} />
        )}
        <TrainingForm images={images} keepsModels={keepsModels} />
      </div>
      <JobList />
    </div>
  );
}

/** The number of thumbnails: five rows with the last cell for the number of the others. */
const shownThumbnails = () => (matchMedia('(max-width: 640px)').matches ? 23 : 49);

function ChosenImages({ images, onClear }: { images: Preview; onClear: () => void }) {
  const good = images.items.filter((i) => i.kind.use === 'image');
  const skipped = images.items.filter((i) => i.kind.use === 'skipped');
  const classes = images.items.filter((i) => i.kind.use === 'classes');
  const ignored = images.items.filter((i) => i.kind.use === 'ignored').length;
  const shown = good.length === shownThumbnails() + 1 ? good.length : shownThumbnails();
  const note = layoutNote(images.items);
  return (
    <section class="card" aria-labelledby="images-title">
      <div class="card-head">
        <div>
          <h2 id="images-title">{count(good.length, 'image')}</h2>
          <p class="hint">
            {bytes(images.bytes)}
            {images.zip ? ` in ${images.zip.name}` : ''}
            {classes.length > 0 ? `, class names from ${classes[0]!.path.split('/').pop()}` : ''}
            {ignored > 0 ? `, ${count(ignored, 'other file')} ignored` : ''}
            {images.unread > 0 ? `, ${count(images.unread, 'more file')} not looked at` : ''}
          </p>
        </div>
        <button type="button" class="small" onClick={onClear}>
          Choose others
        </button>
      </div>
      {note && (
        <Notice>
          <p>{note}</p>
        </Notice>
      )}
      {good.length > 0 && good.length < 20 && (
        <Notice kind="warn">
          <p>
            {good.length < 8
              ? 'Fewer than 8 images: the model will find few defects. Add more images of normal parts.'
              : 'With fewer than 20 images the model raises more false alarms. Add more if you can.'}
          </p>
        </Notice>
      )}
      {good.length === 0 && images.unread === 0 && (
        <Notice kind="warn">
          <p>None of these files is an image that can be read. Choose JPEG or PNG files.</p>
        </Notice>
      )}
      {good.length > 0 && (
        <ul class="thumbnails" aria-label="Images to train on">
          {good.slice(0, shown).map((i) => (
            <Thumbnail key={i.path} item={i} />
          ))}
          {good.length > shown && <li class="more">+ {(good.length - shown).toLocaleString('en')}</li>}
        </ul>
      )}
      {skipped.length > 0 && (
        <details class="skipped" open={skipped.length <= 5}>
          <summary>
            <Icon name="alert" /> {count(skipped.length, 'file')} will be skipped
          </summary>
          <ul>
            {skipped.slice(0, 200).map((i) => (
              <li key={i.path}>
                <span class="path">{i.path}</span> <span class="hint">{i.kind.use === 'skipped' ? i.kind.reason : ''}</span>
              </li>
            ))}
          </ul>
        </details>
      )}
    </section>
  );
}

/** Thumbnails are made one after another: a photo takes up to 100 MB while it is decoded. */
let queue: Promise<unknown> = Promise.resolve();

function Thumbnail({ item }: { item: PreviewItem }) {
  const [url, setURL] = useState<string | null>();
  useEffect(() => {
    let gone = false;
    let made: string | undefined;
    queue = queue.then(async () => {
      if (gone) return;
      const image = await item.open();
      made = image && (await thumbnail(image, 96))?.url;
      if (gone && made) URL.revokeObjectURL(made);
      else setURL(made ?? null);
    });
    return () => {
      gone = true;
      if (made) URL.revokeObjectURL(made);
    };
  }, [item]);
  const name = item.path.split('/').pop()!;
  return (
    <li title={item.path}>
      {url ? <img src={url} alt={name} /> : <span class={url === null ? 'no-thumbnail' : 'no-thumbnail waiting'}>{url === null ? (name.split('.').pop() ?? '') : ''}</span>}
    </li>
  );
}

const namePattern = /^[a-z0-9]$|^[a-z0-9](?!.*\.\.)[a-z0-9._-]{0,98}[a-z0-9]$/;
const tileSizes = [128, 256, 512];

function TrainingForm({ images, keepsModels }: { images: Preview | undefined; keepsModels: boolean }) {
  const [level, setLevel] = useState(3);
  const [size, setSize] = useState(usualSize);
  const [tile, setTile] = useState(0);
  const [fit, setFit] = useState('');
  const [region, setRegion] = useState<Region>();
  const [values, setValues] = useState('');
  const [rate, setRate] = useState('5');
  const [name, setName] = useState('');
  const [threads, setThreads] = useState(2);
  const [stage, setStage] = useState<{ what: string; share: number }>();
  const [error, setError] = useState<unknown>();
  const abort = useRef<AbortController | undefined>(undefined);
  useEffect(() => {
    requestJSON<Health>('health').then((h) => setThreads(h.threads), () => undefined);
  }, []);
  const n = images ? images.items.filter((i) => i.kind.use === 'image').length + images.unread : 0;
  const badName = name !== '' && !namePattern.test(name);
  const rateValue = Number(rate.replace(',', '.'));
  const badRate = !(rateValue > 0 && rateValue < 100);
  const pixels = pixelsOf(size);
  const submit = async (e: TargetedSubmitEvent<HTMLFormElement>) => {
    e.preventDefault();
    const invalid = e.currentTarget.querySelector<HTMLElement>('[aria-invalid=true]');
    if (invalid) {
      invalid.closest('details')?.setAttribute('open', '');
      invalid.focus();
      return;
    }
    if (!images) return;
    setError(undefined);
    const a = (abort.current = new AbortController());
    try {
      setStage({ what: 'Packing the images', share: 0 });
      const zip = images.zip ?? (await zipFiles(images.files, (share) => setStage({ what: 'Packing the images', share }), a.signal));
      const form = new FormData();
      form.append('level', String(level));
      if (tile > 0) {
        form.append('tile', String(tile));
      } else {
        form.append('image_size', sizeText(size));
        if (fit !== '') form.append('fit', fit);
      }
      if (values !== '') form.append('window', values);
      if (region) form.append('roiFile', region.file, region.file.name);
      form.append('false_alarm_rate', String(rateValue / 100));
      if (name !== '') form.append('name', name);
      form.append('zipFile', zip, 'images.zip');
      setStage({ what: 'Uploading', share: 0 });
      const job = await upload<Job>('jobs', form, (share) => setStage({ what: share < 1 ? 'Uploading' : 'Checking the images', share }), a.signal);
      chosen.set(undefined);
      go('jobs', job.id);
    } catch (e) {
      if (!isAbort(e)) setError(e);
    } finally {
      setStage(undefined);
    }
  };
  return (
    <form class="card stack" noValidate onSubmit={(e) => void submit(e)}>
      <fieldset class="levels">
        <legend>How thorough?</legend>
        {levels.map((l) => (
          <label key={l.level} class={l.level === level ? 'level chosen' : 'level'}>
            <input type="radio" name="level" value={l.level} checked={l.level === level} onChange={() => setLevel(l.level)} />
            <span class="level-name">{l.name}</span>
            <span class="level-about">{l.about}</span>
            <span class="level-time">{n > 0 && tile === 0 && pixels !== undefined ? `about ${duration(trainingSeconds(l, n, pixels, threads))}` : ''}</span>
          </label>
        ))}
      </fieldset>
      <div class="fields">
        {keepsModels ? (
          <label class="field">
            <span>Name of the model</span>
            <input
              type="text"
              value={name}
              placeholder="for example tiles"
              aria-invalid={badName}
              aria-describedby="name-hint"
              onInput={(e) => setName(e.currentTarget.value.trim().toLowerCase())}
            />
            <small id="name-hint" class={badName ? 'hint bad' : 'hint'}>
              {badName ? 'Use a to z, digits, dots, dashes and underscores, with a letter or digit at both ends.' : 'The model is kept under it. An existing one gets a new version.'}
            </small>
          </label>
        ) : (
          <p class="field hint">
            This service keeps no named models. It was started without a folder for them: start it with <code>anomaly serve --models DIR</code> to keep models under names. You can still
            train, judge and download.
          </p>
        )}
        <details class="more-options">
          <summary>More options</summary>
          <div class="fields">
            <SizeField size={size} disabled={tile > 0} onChange={setSize} />
            <label class="field">
              <span>False alarms, in percent</span>
              <input type="text" inputMode="decimal" value={rate} aria-invalid={badRate} onInput={(e) => setRate(e.currentTarget.value)} />
              <small class={badRate ? 'hint bad' : 'hint'}>
                {badRate ? 'A number above 0 and below 100.' : 'How many normal parts may be reported. It can be changed later.'}
              </small>
            </label>
            <label class="field">
              <span>Large images</span>
              <select value={tile} onChange={(e) => setTile(Number(e.currentTarget.value))}>
                <option value={0}>whole, resized (usual)</option>
                {tileSizes.map((s) => (
                  <option key={s} value={s}>
                    at their own size, in tiles of {s} pixels
                  </option>
                ))}
              </select>
              <small class="hint">Tiles find defects of a few pixels. They need 8 images or more, and take longer.</small>
            </label>
            <label class="field">
              <span>Images of another shape</span>
              <select value={fit} disabled={tile > 0} onChange={(e) => setFit(e.currentTarget.value)}>
                <option value="">are squeezed (usual)</option>
                <option value="pad">get a border</option>
                <option value="crop">are cropped</option>
              </select>
              <small class="hint">A border and cropping keep the proportions.</small>
            </label>
            <RegionField region={region} onChange={setRegion} />
            <label class="field">
              <span>Values of 16-bit images</span>
              <input type="text" value={values} placeholder="chosen by the images" onInput={(e) => setValues(e.currentTarget.value.trim())} />
              <small class="hint">The lowest and the highest, such as 0,4095; or “off” for 8 bits.</small>
            </label>
          </div>
        </details>
      </div>
      {error !== undefined && <ErrorBox error={error} title="The training did not start" />}
      {stage ? (
        <div class="uploading" role="status">
          <span>
            {stage.what}… {stage.what === 'Checking the images' ? '' : `${Math.round(stage.share * 100)} %`}
          </span>
          <Progress value={stage.what === 'Checking the images' ? null : stage.share} label={stage.what} />
          <button type="button" class="small" onClick={() => abort.current?.abort()}>
            Cancel
          </button>
        </div>
      ) : (
        <button type="submit" class="primary" disabled={n === 0}>
          {n === 0 ? 'Choose images first' : 'Start training'}
        </button>
      )}
    </form>
  );
}
