// Bundles the TypeScript sources into dist/: one file per process or worker. Packages stay in node_modules.
import { build } from 'esbuild'
import { chmodSync, copyFileSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
rmSync(join(root, 'dist'), { recursive: true, force: true })
await build({
  absWorkingDir: root,
  entryPoints: { cli: 'gateway/cli/main.ts', engine: 'engine/main.ts' },
  outdir: 'dist',
  bundle: true,
  platform: 'node',
  target: 'node20',
  format: 'esm',
  packages: 'external',
  sourcemap: true,
  logLevel: 'warning',
})
copyFileSync(join(root, 'gateway', 'text', 'template-process.mjs'), join(root, 'dist', 'template-process.mjs'))
chmodSync(join(root, 'dist', 'cli.js'), 0o755)
