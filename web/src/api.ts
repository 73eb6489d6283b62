// Requests to the service. All errors are ApiError, whose message is the sentence that the
// service answers, or one that says what to do.

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

const tokenKey = 'anomaly-token';

/** asks for the token; resolves when the person has entered one, rejects when they give up. */
let askToken: (wrong: boolean) => Promise<string> = () => Promise.reject(new ApiError('This service requires a token.', 401));
let asking: Promise<void> | undefined;

/** Sets the function that asks a person for the token. */
export function setTokenPrompt(ask: (wrong: boolean) => Promise<string>): void {
  askToken = ask;
}

function token(): string | null {
  return sessionStorage.getItem(tokenKey);
}

/** Reports whether requests have a token. */
export function hasToken(): boolean {
  return token() !== null;
}

/** Asks for a token once, however many requests were refused. */
async function renewToken(used: string | null): Promise<void> {
  if (token() !== used) return; // another request has asked meanwhile
  asking ??= askToken(used !== null)
    .then((t) => sessionStorage.setItem(tokenKey, t))
    .finally(() => {
      asking = undefined;
    });
  await asking;
}

function authorization(): Record<string, string> {
  const t = token();
  return t === null ? {} : { Authorization: `Bearer ${t}` };
}

export interface RequestOptions {
  method?: string;
  body?: BodyInit;
  json?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** Sends a request and returns its answer, whatever its status, except for 401. */
async function send(path: string, o: RequestOptions): Promise<Response> {
  for (;;) {
    const used = token();
    const headers: Record<string, string> = { ...o.headers, ...authorization() };
    let body = o.body;
    if (o.json !== undefined) {
      headers['Content-Type'] = 'application/json';
      body = JSON.stringify(o.json);
    }
    let answer: Response;
    try {
      answer = await fetch(path, { method: o.method ?? 'GET', body, headers, signal: o.signal, cache: 'no-store' });
    } catch (e) {
      if (o.signal?.aborted) throw e;
      throw unreachable();
    }
    if (answer.status !== 401) return answer;
    await renewToken(used);
  }
}

function unreachable(): ApiError {
  return new ApiError('The service does not answer. Check that it runs and that this device can reach it, then try again.', 0);
}

/** The error of an answer that is not 2xx. */
function errorOf(status: number, text: string): ApiError {
  try {
    const sentence = (JSON.parse(text) as { error?: unknown }).error;
    if (typeof sentence === 'string' && sentence !== '') return new ApiError(sentence, status);
  } catch {
    // not JSON: a proxy's answer
  }
  return new ApiError(`The service answered with status ${status}. Try again, or look at its log.`, status);
}

export async function request(path: string, o: RequestOptions = {}): Promise<Response> {
  const answer = await send(path, o);
  if (!answer.ok) throw errorOf(answer.status, await answer.text());
  return answer;
}

export async function requestJSON<T>(path: string, o: RequestOptions = {}): Promise<T> {
  return (await (await request(path, o)).json()) as T;
}

export async function requestBlob(path: string, o: RequestOptions = {}): Promise<Blob> {
  return (await request(path, o)).blob();
}

/** Posts a form and reports how much of it is sent, from 0 to 1. fetch cannot report that. */
export async function upload<T>(path: string, form: FormData, onProgress: (share: number) => void, signal?: AbortSignal): Promise<T> {
  for (;;) {
    const used = token();
    const { status, text } = await new Promise<{ status: number; text: string }>((resolve, reject) => {
      const x = new XMLHttpRequest();
      x.open('POST', path);
      for (const [name, value] of Object.entries(authorization())) x.setRequestHeader(name, value);
      x.upload.onprogress = (e) => {
        if (e.lengthComputable) onProgress(e.loaded / e.total);
      };
      x.onload = () => resolve({ status: x.status, text: x.responseText });
      x.onerror = () => reject(unreachable());
      x.onabort = () => reject(new DOMException('The upload was cancelled.', 'AbortError'));
      if (signal?.aborted) return reject(new DOMException('The upload was cancelled.', 'AbortError'));
      signal?.addEventListener('abort', () => x.abort());
      x.send(form);
    });
    if (status === 401) {
      await renewToken(used);
      continue;
    }
    if (status < 200 || status > 299) throw errorOf(status, text);
    return JSON.parse(text) as T;
  }
}

export function isAbort(e: unknown): boolean {
  return e instanceof DOMException && e.name === 'AbortError';
}

/** The sentence for a person about an error of any kind. */
export function sentence(e: unknown): string {
  return e instanceof Error && e.message !== '' ? e.message : 'Something went wrong. Reload the page and try again.';
}

export interface ServerEvent {
  id: string;
  event: string;
  data: string;
}

/** Reads one stream of events to its end. EventSource cannot send a token. */
async function* readEvents(path: string, lastID: string, signal: AbortSignal): AsyncGenerator<ServerEvent> {
  const headers: Record<string, string> = { Accept: 'text/event-stream' };
  if (lastID !== '') headers['Last-Event-ID'] = lastID;
  const answer = await request(path, { headers, signal });
  if (answer.status === 204 || answer.body === null) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let end = rest.indexOf('\n\n'); end >= 0; end = rest.indexOf('\n\n')) {
      const e: ServerEvent = { id: '', event: 'message', data: '' };
      for (const line of rest.slice(0, end).split('\n')) {
        const colon = line.indexOf(':');
        const value = line.slice(colon + 1).replace(/^ /, '');
        switch (line.slice(0, colon)) {
          case 'id':
            e.id = value;
            break;
          case 'event':
            e.event = value;
            break;
          case 'data':
            e.data += value;
        }
      }
      rest = rest.slice(end + 2);
      if (e.data !== '') yield e;
    }
  }
}

/**
 * Calls onEvent for each event of a stream until onEvent returns true or the signal ends.
 * A broken connection is opened again after the last event that arrived.
 */
export async function follow(path: string, signal: AbortSignal, onEvent: (e: ServerEvent) => boolean, onConnection: (up: boolean) => void): Promise<void> {
  let last = '';
  let pause = 1000;
  while (!signal.aborted) {
    try {
      for await (const e of readEvents(path, last, signal)) {
        last = e.id;
        pause = 1000;
        onConnection(true);
        if (onEvent(e)) return;
      }
      if (last !== '') onConnection(true);
    } catch (e) {
      if (signal.aborted) return;
      if (e instanceof ApiError && e.status >= 400 && e.status < 500) throw e;
      onConnection(false);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, 15000);
  }
}
