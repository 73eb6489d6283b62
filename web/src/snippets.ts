// Programs that judge an image by a model, ready to be copied and run. They need no
// packages.

export interface Snippet {
  title: string;
  text: string;
}

export function snippets(base: string, name: string, token: boolean): Snippet[] {
  const url = `${base}models/${encodeURIComponent(name)}/detect`;
  return [
    {
      title: 'curl',
      text: `curl -sf ${token ? '-H "Authorization: Bearer $TOKEN" ' : ''}-F imageFile=@image.jpg \\\n  ${url}\n`,
    },
    {
      title: 'Python',
      text: `import json${token ? ', os' : ''}, urllib.request, uuid

image = "image.jpg"
boundary = uuid.uuid4().hex
with open(image, "rb") as f:
    body = (f'--{boundary}\\r\\nContent-Disposition: form-data; name="imageFile"; '
            f'filename="{image}"\\r\\n\\r\\n').encode() + f.read() + f"\\r\\n--{boundary}--\\r\\n".encode()
headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
${token ? 'headers["Authorization"] = "Bearer " + os.environ["TOKEN"]\n' : ''}request = urllib.request.Request("${url}", body, headers)
with urllib.request.urlopen(request) as answer:
    verdict = json.load(answer)
print(verdict["is_anomaly"], verdict["anomaly_score"], verdict["threshold"])
`,
    },
    {
      title: 'JavaScript',
      text: `// Node.js 20 or newer: node judge.mjs
import { openAsBlob } from "node:fs";

const form = new FormData();
form.append("imageFile", await openAsBlob("image.jpg"), "image.jpg");
const answer = await fetch("${url}", {
  method: "POST",
  body: form,${token ? '\n  headers: { Authorization: `Bearer ${process.env.TOKEN}` },' : ''}
});
const verdict = await answer.json();
if (!answer.ok) throw new Error(verdict.error);
console.log(verdict.is_anomaly, verdict.anomaly_score, verdict.threshold);
`,
    },
  ];
}
