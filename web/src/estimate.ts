// How long a training takes, roughly: from measurements on two cores (docs/performance.md).

export interface Level {
  level: number;
  name: string;
  about: string;
  epochs: number;
  headSteps: number;
}

export const levels: Level[] = [
  { level: 1, name: 'Quick look', about: 'To try things out. Finds clear defects.', epochs: 5, headSteps: 0 },
  { level: 2, name: 'Fast', about: 'Good for a first useful model.', epochs: 10, headSteps: 250 },
  { level: 3, name: 'Standard', about: 'The usual choice.', epochs: 30, headSteps: 400 },
  { level: 4, name: 'Thorough', about: 'Finds fainter and smaller defects.', epochs: 50, headSteps: 600 },
  { level: 5, name: 'Best', about: 'Takes its time. For a model that stays in use.', epochs: 100, headSteps: 800 },
];

/** Seconds that a training takes if each image is resized to a number of pixels, an estimate within a factor of two or so. */
export function trainingSeconds(l: Level, images: number, pixels: number, threads: number): number {
  const area = pixels / 256 ** 2;
  const speed = Math.max(threads, 1) / 2;
  const epochs = (images * l.epochs * area) / 120;
  // The statistics use at most about 820 images of 256 px.
  const features = Math.min(images, 820 / area) * 0.1 * area;
  const heads = images >= 16 ? l.headSteps * 0.15 * area : 0;
  return 2 + (epochs + features + heads) / speed;
}
