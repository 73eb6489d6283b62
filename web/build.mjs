// Builds the page into dist: one script and one style sheet, with hashes of their content
// in their names, index.html, the icon and the licenses of the bundled code. With --check
// nothing is written: the files in dist are compared with those that the sources build to.
import { build } from 'esbuild';
import { existsSync } from 'node:fs';
import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(fileURLToPath(import.meta.url));
const dist = join(root, 'dist');

/** The files of dist by name. */
async function bundle() {
  const result = await build({
    absWorkingDir: root,
    entryPoints: { app: 'src/main.tsx', style: 'src/style/main.css' },
    entryNames: '[name]-[hash]',
    outdir: 'dist',
    bundle: true,
    format: 'esm',
    minify: true,
    target: ['chrome110', 'firefox115', 'safari16.4'],
    jsx: 'automatic',
    jsxImportSource: 'preact',
    legalComments: 'none',
    metafile: true,
    write: false,
  });
  const files = new Map();
  for (const f of result.outputFiles) files.set(f.path.slice(dist.length + 1), Buffer.from(f.contents));
  const named = (start, end) => [...files.keys()].find((n) => n.startsWith(start) && n.endsWith(end));
  const html = await readFile(join(root, 'src/index.html'), 'utf8');
  files.set('index.html', Buffer.from(html.replace('{{script}}', named('app-', '.js')).replace('{{style}}', named('style-', '.css'))));
  files.set('icon.svg', await readFile(join(root, 'src/icon.svg')));
  files.set('NOTICE.txt', Buffer.from(await notice(Object.keys(result.metafile.inputs))));
  return files;
}

/** The licenses of the packages whose code is in the bundle. */
async function notice(inputs) {
  const packages = new Set();
  for (const input of inputs) {
    const m = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
    if (m) packages.add(m[1]);
  }
  let text = 'The script of this page contains the following packages.\n';
  for (const name of [...packages].sort()) {
    const folder = join(root, 'node_modules', name);
    const about = JSON.parse(await readFile(join(folder, 'package.json'), 'utf8'));
    text += `\n${about.name} ${about.version}, ${about.license}\n\n${await readFile(join(folder, 'LICENSE'), 'utf8')}`;
  }
  return text;
}

const files = await bundle();
if (process.argv.includes('--check')) {
  const there = existsSync(dist) ? await readdir(dist) : [];
  const wrong = [];
  for (const [name, content] of files) {
    if (!there.includes(name)) wrong.push(`${name} is missing`);
    else if (!content.equals(await readFile(join(dist, name)))) wrong.push(`${name} differs`);
  }
  for (const name of there) if (!files.has(name)) wrong.push(`${name} is not built`);
  if (wrong.length > 0) {
    console.error(`web/dist is not what web/src builds to: ${wrong.join(', ')}. Run make page.`);
    process.exit(1);
  }
} else {
  await rm(dist, { recursive: true, force: true });
  await mkdir(dist, { recursive: true });
  for (const [name, content] of files) await writeFile(join(dist, name), content);
  for (const [name, content] of files) console.log(`${String(content.length).padStart(8)}  ${name}`);
}
