// Bundles the TypeScript sources and most packages into dist/, one file per process: a start then reads two files
// instead of some hundred, which halves it. Packages with native code or files of their own stay in node_modules.
import { build } from 'esbuild'
import { chmodSync, copyFileSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
rmSync(join(root, 'dist'), { recursive: true, force: true })
await build({
  absWorkingDir: root,
  entryPoints: {
    cli: 'gateway/cli/main.ts',
    engine: 'engine/main.ts',
    'grammar-worker': 'engine/grammar/grammar-worker.ts',
    tools: 'engine/tools/main.ts',
  },
  outdir: 'dist',
  bundle: true,
  platform: 'node',
  target: 'node20',
  format: 'esm',
  external: ['tokenizers', '@grpc/*', 'grpc-health-check'],
  banner: {
    js: "import { createRequire as requireFrom } from 'node:module'; const require = requireFrom(import.meta.url);",
  },
  sourcemap: true,
  logLevel: 'warning',
})
copyFileSync(join(root, 'gateway', 'text', 'template-process.mjs'), join(root, 'dist', 'template-process.mjs'))
chmodSync(join(root, 'dist', 'cli.js'), 0o755)
