import { mkdtempSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { LoadRequest, NativeModel } from '../../engine/native.js'
import { packedName } from '../../engine/residency/packed-name.js'
import { PackedStore } from '../../engine/residency/packed-store.js'
import { stories260kRequest } from '../support/stories260k.js'

const log = pino({ level: 'silent' })
const MEGABYTE = 1e6
let folder: string
let source: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'es-packed-'))
  source = join(folder, 'model.bin')
  writeFileSync(source, 'weights')
})
afterEach(() => rmSync(folder, { recursive: true }))

const cache = (): string => join(folder, 'cache')
const packedFiles = (): string[] => readdirSync(cache()).toSorted()
const open = (megabytes = 10): PackedStore => new PackedStore(cache(), megabytes * MEGABYTE, log)
const request = (precision: LoadRequest['precision'] = 'int8'): LoadRequest => ({
  ...stories260kRequest(precision),
  files: [source],
})

/** What a load gave, as far as the store looks at it. */
function loadedModel({ megabytes = 1, ...rest }: Partial<NativeModel> & { megabytes?: number } = {}) {
  return {
    weightBytes: 0,
    workspaceBytes: 0,
    blockBytes: 0,
    roundingError: 0,
    origin: 'files' as const,
    packedFault: '',
    packedBytes: megabytes * MEGABYTE,
    setSlot: () => {},
    step: () => Promise.reject(new Error('not asked for')),
    giveMasks: () => {},
    unload: () => Promise.resolve(),
    savePacked: ({ path }: { path: string }) => {
      writeFileSync(path, Buffer.alloc(megabytes * MEGABYTE))
      return Promise.resolve()
    },
    ...rest,
  }
}

const idle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/** Loads a variant as the engine does; resolves when what there was to write is written. */
async function load(store: PackedStore, of: LoadRequest, model = loadedModel()): Promise<boolean> {
  const name = store.name(of, 'layout')
  if (!name) throw new Error('no name')
  const found = store.find(name) !== undefined
  store.loaded('m:rung', name, model)
  await idle()
  return found
}

describe('the name of a repacked file', () => {
  const stamp = () => ({ size: 1n, mtimeNs: 2n })
  const name = packedName(request(), 'layout', stamp)

  it.each([
    ['another size', packedName(request(), 'layout', () => ({ size: 2n, mtimeNs: 2n }))],
    ['another time', packedName(request(), 'layout', () => ({ size: 1n, mtimeNs: 3n }))],
    ['another way to read it', packedName({ ...request(), weights: request().weights.slice(1) }, 'layout', stamp)],
  ])('of %s is another one of the same variant', (_, other) => {
    expect(other.file).not.toBe(name.file)
    expect(other.key).not.toBe(name.key)
    expect(other.variant).toBe(name.variant)
  })

  it.each([
    ['rung', packedName(request('int4'), 'layout', stamp)],
    ['layout', packedName(request(), 'layout 2', stamp)],
    ['path', packedName({ ...request(), files: ['/other'] }, 'layout', stamp)],
  ])('of another %s is of another variant', (_, other) => {
    expect(other.variant).not.toBe(name.variant)
  })
})

describe('repacked files', () => {
  it('are written after a load, found by the next, and by the next process', async () => {
    const store = open()
    expect(await load(store, request())).toBe(false)
    expect(store.events).toMatchObject({ miss: 1, written: 1 })
    expect(store.bytes).toBe(MEGABYTE)
    expect(await load(store, request(), loadedModel({ origin: 'packed_file' }))).toBe(true)
    expect(store.events).toMatchObject({ hit: 1, written: 1 })
    expect(await load(open(), request())).toBe(true)
  })

  it('give way to others by last use, within the budget', async () => {
    const store = open(2.5)
    await load(store, request('fp16'))
    await load(store, request('int8'))
    await load(store, request('fp16'), loadedModel({ origin: 'packed_file' }))
    await load(store, request('int4'))
    expect(store.events).toMatchObject({ written: 3, evicted: 1 })
    expect(packedFiles()).toHaveLength(2)
    expect(store.bytes).toBe(2 * MEGABYTE)
    expect(await load(store, request('fp16'), loadedModel({ origin: 'packed_file' }))).toBe(true)
    expect(await load(store, request('int8'))).toBe(false)
  })

  it('that are more than the budget of a new process go, the longest unused first', async () => {
    const store = open()
    for (const precision of ['fp16', 'int8', 'int4'] as const) await load(store, request(precision))
    const [first, second, third] = (['int8', 'int4', 'fp16'] as const).map(
      (p) => store.name(request(p), 'layout')?.file ?? '',
    )
    for (const [age, file] of [first, second, third].entries()) utimesSync(join(cache(), file ?? ''), age, age)
    expect(open(2.5).count).toBe(2)
    expect(new Set(packedFiles())).toEqual(new Set([second, third]))
  })

  it('of a model whose files changed are removed', async () => {
    const store = open()
    await load(store, request())
    writeFileSync(source, 'other weights')
    expect(await load(store, request())).toBe(false)
    expect(store.events).toMatchObject({ stale: 1, written: 2 })
    expect(packedFiles()).toHaveLength(1)
  })

  it('that could not be used are removed and written again', async () => {
    const store = open()
    await load(store, request())
    expect(await load(store, request(), loadedModel({ packedFault: 'its content is damaged' }))).toBe(true)
    expect(store.events).toMatchObject({ damaged: 1, written: 2, miss: 2 })
    expect(packedFiles()).toHaveLength(1)
  })

  it.each([
    ['a full disk', 'disk_full', { disk_full: 1, failed: 0 }],
    ['a fault of the disk', 'io_error', { disk_full: 0, failed: 1 }],
    ['an unload that came first', 'invalid_argument', { disk_full: 0, failed: 0 }],
  ])('are not there after %s', async (_, code, events) => {
    const store = open()
    const failure = Object.assign(new Error('the disk'), { code })
    await load(store, request(), loadedModel({ savePacked: () => Promise.reject(failure) }))
    expect(store.events).toMatchObject({ written: 0, ...events })
    expect(store.bytes).toBe(0)
    expect(packedFiles()).toEqual([])
  })

  it('larger than the budget are not written, and nothing goes for them', async () => {
    const store = open(2)
    await load(store, request('int4'))
    await load(store, request('fp16'), loadedModel({ megabytes: 3 }))
    expect(store.events).toMatchObject({ too_large: 1, evicted: 0, written: 1 })
  })

  it('that a process left unfinished are removed; those of a living one stay', () => {
    open()
    writeFileSync(join(cache(), 'a.packed.999999999.tmp'), 'half')
    writeFileSync(join(cache(), `b.packed.${process.ppid}.tmp`), 'half')
    open()
    expect(packedFiles()).toEqual([`b.packed.${process.ppid}.tmp`])
  })

  it('are not kept of files that are gone', () => {
    expect(open().name({ ...request(), files: [join(folder, 'gone')] }, 'layout')).toBeUndefined()
  })

  it('are in a folder of the user alone', () => {
    open()
    expect(statSync(cache()).mode & 0o777).toBe(0o700)
  })
})
