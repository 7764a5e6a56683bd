import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { openClient } from '../../gateway/engine-client/connect.js'
import { FinishReason, type SessionEvent } from '../../proto/gen/edgeshift/v1/engine.js'
import { neutralSampling, submitOf } from '../support/fake-engine.js'
import { TINY_STOP_TOKEN } from '../support/tiny-tokenizer.js'

const MAIN = new URL('../support/synthetic-engine.ts', import.meta.url).pathname
const STREAMS = 4
const LENGTH = 20
const RATE = 200

it('serves the configured rungs, with tokens at the set rate', { timeout: 60_000 }, async () => {
  const dir = mkdtempSync(join(tmpdir(), 'es-synthetic-'))
  const config = join(dir, 'models.yaml')
  writeFileSync(config, 'models: [{ id: m, variants: [{ precision: int4, path: none.gguf }] }]')
  const args = ['--import', 'tsx', MAIN, '--config', config, '--socket', join(dir, 's')]
  const options = ['--rate', String(RATE), '--length', String(LENGTH)]
  const child = spawn(process.execPath, [...args, ...options], { stdio: ['pipe', 'ignore', 'inherit'] })
  const client = openClient(join(dir, 's'))
  try {
    await new Promise<void>((resolve, reject) => {
      client.waitForReady(Date.now() + 40_000, (error) => (error ? reject(error) : resolve()))
    })
    const names: string[] = []
    for await (const asset of client.getModelAssets({ model: 'm', configDigest: '' })) names.push(asset.name)
    expect(names).toContain('tokenizer.json')

    const session = client.session()
    const answers = Array.from({ length: STREAMS }, (): number[] => [])
    const startedAt = performance.now()
    const done = new Promise<FinishReason[]>((resolve, reject) => {
      const reasons: FinishReason[] = []
      session.on('error', reject)
      session.on('data', ({ kind }: SessionEvent) => {
        for (const delta of kind?.$case === 'step' ? kind.step.deltas : []) {
          answers[delta.sequenceId]?.push(...delta.tokens)
          if (delta.finishReason !== FinishReason.UNSPECIFIED) reasons.push(delta.finishReason)
          if (reasons.length === STREAMS) resolve(reasons)
        }
      })
    })
    const sampling = neutralSampling({ stopTokenIds: [TINY_STOP_TOKEN] })
    for (let id = 0; id < STREAMS; id++) {
      const submit = { ...submitOf(id, [5, 6, 7], { sampling, maxTokens: 100 }), variant: 'm:int4' }
      session.write({ commands: [{ kind: { $case: 'submit', submit } }] })
    }
    expect(await done).toEqual(Array.from({ length: STREAMS }, () => FinishReason.STOP))
    expect(answers.map((answer) => answer.length)).toEqual(Array.from({ length: STREAMS }, () => LENGTH + 1))
    expect(performance.now() - startedAt).toBeGreaterThan((LENGTH / RATE) * 1000 * 0.8)
    session.end()
  } finally {
    client.close()
    child.kill('SIGKILL')
    rmSync(dir, { recursive: true })
  }
})
