// What a model would find: the shares of synthetic anomalies found, by size and contrast.

import { percent } from './format';
import type { Detectability } from './types';

/** of is the image whose pixels the sizes are in. */
export function DetectabilityCard({ table, of }: { table: Detectability; of: string }) {
  const rows: [string, number[]][] = table.contrasts.map((c, i) => [`${c} grey levels`, table.found[i] ?? []]);
  if (table.cut_paste) rows.push(['pasted texture', table.cut_paste]);
  if (table.blur) rows.push(['blurred', table.blur]);
  return (
    <section class="card" aria-labelledby="find-title">
      <h2 id="find-title">What would it find?</h2>
      <p class="hint">
        The share of artificial defects found on {table.normal_images} normal images, by size and by how much they differ. Sizes are in pixels of the {of}. A value of{' '}
        {percent(table.false_alarms)} or less is chance. Real defects may be found more or less often.
      </p>
      <div class="table-scroll" tabIndex={0} role="region" aria-label="Table of the shares found">
        <table class="heat-table">
          <thead>
            <tr>
              <th scope="col">Difference</th>
              {table.diameters.map((d) => (
                <th key={d} scope="col">
                  {d} px
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map(([label, shares]) => (
              <tr key={label}>
                <th scope="row">{label}</th>
                {shares.map((s, i) => (
                  <td key={i} style={{ background: `color-mix(in srgb, var(--accent) ${Math.round(s * 38)}%, var(--surface))` }}>
                    {Math.round(s * 100)} %
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
