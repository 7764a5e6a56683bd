/** A model file that is truncated before or while an engine reads it: one rung fails with the reason, the engine serves on. */
import { copyFileSync, existsSync, readFileSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { afterEach, describe, expect, it } from 'vitest'
import { FinishReason, type VariantStatus, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import { EngineProcess } from '../support/engine-process.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'

const ATTEMPTS = 5
const running: EngineProcess[] = []

afterEach(() => {
  for (const engine of running.splice(0)) engine.close()
})

const copyIn = (folder: string): string => join(folder, 'model.gguf')

/** An engine with the embedded model at int4 (`whole`) and a copy of its file at fp16 (`torn`). */
function start(prepare: (model: string) => void): EngineProcess {
  const rung = (id: string, path: string, precision: string): string =>
    `  - { id: ${id}, max_model_len: 256, variants: [{ precision: ${precision}, path: ${JSON.stringify(path)} }] }\n`
  const engine = EngineProcess.start((folder) => {
    const model = copyIn(folder)
    copyFileSync(SMOLLM2_FILE, model)
    prepare(model)
    return `models:\n${rung('whole', SMOLLM2_FILE, 'int4')}${rung('torn', model, 'fp16')}`
  })
  running.push(engine)
  return engine
}

/** Both variants as soon as neither is loading any more. */
async function settled(engine: EngineProcess): Promise<Record<string, VariantStatus>> {
  const { variants } = await engine.settled()
  return Object.fromEntries(variants.map((variant) => [variant.model, variant]))
}

async function untilMapped({ child, folder }: EngineProcess): Promise<void> {
  const model = copyIn(folder)
  const maps = `/proc/${child.pid}/maps`
  while (child.exitCode === null && !readFileSync(maps, 'utf8').includes(model)) {
    // oxlint-disable-next-line no-await-in-loop -- until the other process has come so far
    await setImmediate()
  }
}

describe('a torn model file', { timeout: 120_000 }, () => {
  it('is refused with its name when it was truncated before the load', async () => {
    const engine = start((model) => truncateSync(model, 40_000_000))
    const { torn, whole } = await settled(engine)
    expect(torn).toMatchObject({ state: VariantState.FAILED })
    expect(torn?.error).toMatch(/model\.gguf.*past the end of the file/)
    expect(whole).toMatchObject({ state: VariantState.READY })
  })

  it.skipIf(!existsSync('/proc/self/maps'))('fails its rung when it is truncated during the load', async () => {
    // Tried again where what was seen was the end of the load, or the reading of the header before it.
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const engine = start(() => {})
      // oxlint-disable-next-line no-await-in-loop -- one engine at a time
      await untilMapped(engine)
      truncateSync(copyIn(engine.folder), 1_000_000)
      // oxlint-disable-next-line no-await-in-loop
      const { torn, whole } = await settled(engine)
      expect(whole).toMatchObject({ state: VariantState.READY })
      // oxlint-disable-next-line no-await-in-loop
      expect((await engine.ask('whole:int4', [1, 2, 3], 3)).finishReason).toBe(FinishReason.LENGTH)
      expect(engine.child.exitCode).toBeNull()
      if (torn?.state === VariantState.READY || torn?.error.includes('past the end of the file')) continue
      expect(torn).toMatchObject({ state: VariantState.FAILED })
      expect(torn?.error).toContain('model.gguf: the file was truncated, or could not be read, while it was being read')
      return
    }
    expect.unreachable(`no load was seen in ${ATTEMPTS} attempts`)
  })
})
