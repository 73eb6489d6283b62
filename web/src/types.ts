// The answers of the service, as far as the page uses them: see docs/http.md.

export type JobState = 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled';

export interface JobProgress {
  phase: string;
  fraction: number;
  epoch: number;
  epochs: number;
  loss: number | null;
  seconds_left: number | null;
  /** Of a job of kind detect: the images of the zip, and those judged so far. */
  images?: { all: number; judged: number; anomalous: number; unreadable: number };
}

export interface Job {
  id: string;
  kind: string;
  name?: string;
  /** A request waits for it and receives its model. */
  attached?: boolean;
  state: JobState;
  created_at: string;
  started_at: string | null;
  ended_at: string | null;
  attempts: number;
  progress: JobProgress;
  losses?: number[] | null;
  error: string | null;
  warnings?: string[] | null;
  model_sha256: string | null;
}

export interface Detectability {
  threshold: number;
  normal_images: number;
  false_alarms: number;
  images_per_cell: number;
  diameters: number[];
  contrasts: number[];
  found: number[][];
  cut_paste?: number[];
  blur?: number[];
}

export interface Preprocessing {
  width?: number;
  height?: number;
  fit?: 'pad' | 'crop';
  window?: [number, number];
  region?: { width: number; height: number; runs: string };
  tiles?: { overlap: number; longest_side?: number; statistics: string; columns?: number; rows?: number };
}

export interface Metadata {
  /** 0 if the input is not square: then preprocessing has its width and height. */
  image_size: number;
  preprocessing?: Preprocessing;
  threshold: number;
  class_names?: string[];
  training_losses?: number[];
  decision?: {
    measure: string;
    threshold: number;
    false_alarm_rate?: number;
    normals?: number;
    supported_rate?: number;
    scores?: number[];
    calibrated_on?: { images: number; skipped: number; warnings?: string[] };
  };
  detectability?: Detectability;
  training?: {
    level: number;
    epochs: number;
    steps?: number;
    planned_steps?: number;
    ended?: string;
    images: number;
    skipped: number;
    skipped_files?: { name: string; reason: string }[];
    warnings?: string[];
  };
}

export interface Entry {
  name: string;
  state: 'ready' | 'loading' | 'broken';
  error?: string;
  sha256: string;
  format: string;
  bytes: number;
  modified: string;
  metadata?: Metadata;
}

export interface Region {
  x: number;
  y: number;
  width: number;
  height: number;
  score: number;
}

export interface Verdict {
  anomaly_score?: number;
  reconstruction_error: number;
  threshold: number;
  is_anomaly: boolean;
  class_names?: string[];
  measure?: string;
  model_sha256?: string;
  warnings?: string[];
  regions?: Region[];
  heatmap?: string;
}

export interface Summary {
  normal: number;
  anomalous: number;
  false_alarms: number;
  missed: number;
  threshold: number;
  suggested_threshold: number | null;
  suggested: { false_alarms: number; missed: number } | null;
}

export type Label = 'normal' | 'anomalous';

export interface Feedback {
  id: string;
  label: Label;
  filename: string;
  /** null if the image could not be judged again by the current version. */
  anomaly_score: number | null;
  is_anomaly: boolean;
  created_at: string;
}

export interface Drift {
  alarm: boolean;
  since: string | null;
  images: number;
  log10_evidence: number;
  level: number;
  message: string | null;
  available: boolean;
}

export interface Scores {
  threshold: number;
  false_alarm_rate: number | null;
  calibration: { count: number; scores: number[] };
  recent: { count: number; scores: number[] };
  feedback: { id: string; label: Label; anomaly_score: number | null }[];
  drift: Drift;
}

export interface Version {
  sha256: string;
  created_at: string;
  reason: string;
  threshold: number;
  current: boolean;
}

export interface Health {
  status: string;
  execution_provider: string;
  threads: number;
}

export interface CalibrationAnswer {
  model: Entry;
  warnings: string[];
  report: {
    images: number;
    skipped: number;
    threshold_before: number;
    threshold_after: number;
    false_alarm_rate: number;
    supported_rate: number;
  };
}
