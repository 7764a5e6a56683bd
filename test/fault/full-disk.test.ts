/**
 * No room on the disk for a repacked file: the load succeeds, the engine says so and serves on, no partial file is left.
 * None for the log: the engine serves on.
 */
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { FinishReason, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import { EngineProcess } from '../support/engine-process.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'
import { testDevice } from '../support/test-device.js'

const running: EngineProcess[] = []
afterEach(() => {
  for (const engine of running.splice(0)) engine.close()
})

const config = (folder: string): string => `
server: { cache_dir: ${JSON.stringify(join(folder, 'cache'))} }
devices: [${testDevice({ cpu: 1, cuda: 1 }).yaml}]
models: [{ id: m, max_model_len: 256, variants: [{ precision: int4, path: ${JSON.stringify(SMOLLM2_FILE)} }] }]
`

/** Files of at most 20 MB: writing fails in the middle. The repacked file has about 90 MB. */
const smallFiles = (): string[] => ['bash', '-c', 'ulimit -f 20000; exec "$@"', 'bash']

/** The folder is a filesystem of 32 MB, in a namespace of its own. */
const MOUNT = 'mkdir -p "$0"; mount -t tmpfs -o size=32m tmpfs "$0" && exec "$@"'
const smallDisk = (folder: string): string[] => {
  return ['unshare', '--map-root-user', '--mount', 'sh', '-c', MOUNT, join(folder, 'cache')]
}

function canMount(): boolean {
  const probe = ['--map-root-user', '--mount', 'sh', '-c', 'mount -t tmpfs tmpfs /tmp']
  return spawnSync('unshare', probe, { stdio: 'ignore' }).status === 0
}

/** Starts an engine there; what it says when it could not write, what is left in the folder, and how it answers. */
async function withoutRoom(through: (folder: string) => string[]): Promise<object> {
  const engine = EngineProcess.start(config, through)
  running.push(engine)
  const [variant] = (await engine.settled()).variants
  const { variant: told } = await engine.logged('no repacked file: the disk is full')
  const { packed } = await engine.status()
  const left = readdirSync(`/proc/${engine.child.pid}/root${join(engine.folder, 'cache')}`)
  const { finishReason } = await engine.ask('m:int4', [1, 2, 3], 3)
  const full = packed?.events.get('disk_full')
  return { state: variant?.state, origin: variant?.origin, told, full, bytes: packed?.bytes, left, finishReason }
}

const SERVED = { state: VariantState.READY, origin: 'files', told: 'm:int4', full: 1, bytes: 0, left: [] }

describe('a full disk', { timeout: 60_000 }, () => {
  it('shows while the file is written', async () => {
    expect(await withoutRoom(smallFiles)).toEqual({ ...SERVED, finishReason: FinishReason.LENGTH })
  })

  it.skipIf(!canMount())('shows before anything is written', async () => {
    expect(await withoutRoom(smallDisk)).toEqual({ ...SERVED, finishReason: FinishReason.LENGTH })
  })

  it('does not matter where the folder cannot be made', async () => {
    const engine = EngineProcess.start(config, (folder) => {
      // A folder that may not be written to: a file stands in its place.
      mkdirSync(join(folder, 'other'))
      return ['bash', '-c', 'echo > "$0"; exec "$@"', join(folder, 'cache')]
    })
    running.push(engine)
    const { variants, packed } = await engine.settled()
    expect(variants).toMatchObject([{ state: VariantState.READY }])
    expect(packed).toBeUndefined()
    expect(engine.log.some(({ msg }) => msg === 'no repacked files: the folder cannot be used')).toBe(true)
  })

  it.skipIf(!existsSync('/dev/full'))(
    "does not matter where it holds the engine's log (skipped without /dev/full)",
    async () => {
      const engine = EngineProcess.start(config, () => ['bash', '-c', 'exec "$@" 2>/dev/full', 'bash'])
      running.push(engine)
      expect(await engine.settled()).toMatchObject({ variants: [{ state: VariantState.READY }] })
      expect(await engine.ask('m:int4', [1, 2, 3], 3)).toMatchObject({ finishReason: FinishReason.LENGTH })
      const exited = once(engine.child, 'exit')
      engine.child.kill('SIGTERM')
      expect(await exited).toEqual([0, null])
    },
  )
})
