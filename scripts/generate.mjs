// Writes every generated file that is committed; with --check, fails when one is out of date.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { root } from './setup.mjs'

const bin = (name) => join(root, 'node_modules', '.bin', name)

function run(command, args) {
  const result = spawnSync(command, args, { stdio: 'inherit', cwd: root })
  if (result.status !== 0) process.exit(result.status ?? 1)
}

function generateInto(folder) {
  run(bin('buf'), ['generate', '--output', folder])
  run(bin('buf'), ['build', '-o', join(folder, 'proto/gen/descriptor.binpb')])
  mkdirSync(join(folder, 'docs'), { recursive: true })
  run(bin('tsx'), ['scripts/websocket-schema.ts', join(folder, 'docs/websocket.schema.json')])
  run(bin('tsx'), ['scripts/config-docs.ts', join(folder, 'docs')])
}

function* files(folder) {
  for (const name of readdirSync(folder)) {
    const path = join(folder, name)
    if (statSync(path).isDirectory()) yield* files(path)
    else yield path
  }
}

if (!process.argv.includes('--check')) {
  generateInto(root)
} else {
  const scratch = mkdtempSync(join(tmpdir(), 'edgeshift-generate-'))
  try {
    generateInto(scratch)
    const stale = [...files(scratch)]
      .map((path) => relative(scratch, path))
      .filter(
        (path) =>
          !existsSync(join(root, path)) || !readFileSync(join(root, path)).equals(readFileSync(join(scratch, path))),
      )
    if (stale.length > 0) {
      console.error(`Out of date, run \`npm run generate\`: ${stale.join(', ')}`)
      process.exitCode = 1
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}
