// The page: its frame, its views, and the question for the token.

import { render } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { ApiError, requestJSON, setTokenPrompt } from './api';
import { JobView } from './job';
import { JudgeView } from './judge';
import { ModelView } from './model';
import { ModelsView } from './models';
import { useLoaded, useRoute } from './store';
import { TrainView } from './train';
import { Dialog, ErrorBox, Icon, Loading, type IconName } from './ui';

const tabs: { path: string; name: string; icon: IconName; covers: string[] }[] = [
  { path: 'train', name: 'Train', icon: 'train', covers: ['', 'train', 'jobs'] },
  { path: 'judge', name: 'Judge', icon: 'judge', covers: ['judge'] },
  { path: 'models', name: 'Models', icon: 'models', covers: ['models'] },
];

function App() {
  const [view = '', id = ''] = useRoute();
  // A service without a folder for models answers 404.
  const keeps = useLoaded('keeps', (signal) =>
    requestJSON('models', { signal }).then(
      () => true,
      (e: unknown) => {
        if (e instanceof ApiError && e.status === 404) return false;
        throw e;
      },
    ),
  );
  const tab = tabs.find((t) => t.covers.includes(view)) ?? tabs[0]!;
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  useEffect(() => {
    document.title = `${id && view === 'models' ? id : tab.name} · Anomaly detection`;
    if (!first.current) main.current?.focus();
    first.current = false;
    scrollTo(0, 0);
  }, [view, id]);
  return (
    <>
      <header class="top">
        <a class="skip" href="#main" onClick={(e) => (e.preventDefault(), main.current?.focus())}>
          Skip to the content
        </a>
        <a class="brand" href="#/train">
          <img src="page/icon.svg" alt="" width="28" height="28" />
          <span>Anomaly detection</span>
        </a>
        <nav aria-label="Views">
          {tabs.map((t) => (
            <a key={t.path} href={`#/${t.path}`} aria-current={t === tab ? 'page' : undefined}>
              <Icon name={t.icon} />
              {t.name}
            </a>
          ))}
        </nav>
      </header>
      <main ref={main} tabIndex={-1}>
        {keeps.error !== undefined ? (
          <ErrorBox error={keeps.error} retry={keeps.reload} title="The page cannot reach the service" />
        ) : keeps.value === undefined ? (
          <Loading what="the page" />
        ) : (
          <View view={view} id={id} keepsModels={keeps.value} />
        )}
      </main>
      <TokenPrompt />
    </>
  );
}

function View({ view, id, keepsModels }: { view: string; id: string; keepsModels: boolean }) {
  switch (view) {
    case 'jobs':
      return id ? <JobView id={id} keepsModels={keepsModels} /> : <TrainView keepsModels={keepsModels} />;
    case 'judge':
      return <JudgeView keepsModels={keepsModels} />;
    case 'models':
      return id && keepsModels ? <ModelView key={id} name={id} /> : <ModelsView keepsModels={keepsModels} />;
  }
  return <TrainView keepsModels={keepsModels} />;
}

/** Asks for the token when the service requires one. */
function TokenPrompt() {
  const [question, setQuestion] = useState<{ wrong: boolean; answer: (t: string) => void; refuse: (e: Error) => void }>();
  const [text, setText] = useState('');
  useEffect(() => setTokenPrompt((wrong) => new Promise((answer, refuse) => setQuestion({ wrong, answer, refuse }))), []);
  if (!question) return null;
  const close = () => {
    setQuestion(undefined);
    question.refuse(new ApiError('This service requires a token. Reload the page to enter it.', 401));
  };
  return (
    <Dialog title="This service requires a token" onClose={close}>
      <form
        class="stack"
        onSubmit={(e) => {
          e.preventDefault();
          setQuestion(undefined);
          setText('');
          question.answer(text.trim());
        }}
      >
        <p class="hint">The person who runs the service has it. It is kept until you close this tab.</p>
        <label class="field">
          <span>Token</span>
          <input type="password" required autoComplete="off" value={text} onInput={(e) => setText(e.currentTarget.value)} aria-describedby={question.wrong ? 'token-wrong' : undefined} />
          {question.wrong && (
            <small class="hint bad" id="token-wrong">
              The service did not accept that token. Check it and enter it again.
            </small>
          )}
        </label>
        <div class="actions end">
          <button type="submit" class="primary">
            Continue
          </button>
        </div>
      </form>
    </Dialog>
  );
}

render(<App />, document.getElementById('app')!);
