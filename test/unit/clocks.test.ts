import { readdirSync, readFileSync } from 'node:fs'
import { expect, it } from 'vitest'

const ROOT = new URL('../../', import.meta.url)

/** Who reads the wall clock, and for what: dates that are shown, and the deadlines of gRPC clients, which are points of it. */
const READERS = [
  'engine/residency/packed-store.ts',
  'engine/tools/pull.ts',
  'gateway/log.ts',
  'gateway/models.ts',
  'gateway/protocols/grpc/service.ts',
  'gateway/protocols/openai/app.ts',
  'gateway/resume/record.ts',
  'gateway/router/watch.ts',
]

it('nothing that waits reads the wall clock: it jumps', () => {
  const files = ['gateway', 'engine']
    .flatMap((folder) =>
      readdirSync(new URL(folder, ROOT), { recursive: true, encoding: 'utf8' }).map((name) => `${folder}/${name}`),
    )
    .filter((name) => /\.(ts|mjs)$/.test(name))
  const readers = files.filter((file) => /\bDate\.now\b|\bnew Date\(\)/.test(readFileSync(new URL(file, ROOT), 'utf8')))
  expect(new Set(readers)).toEqual(new Set(READERS))
})
