import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { NativeAddon, NativeDevice } from '../../engine/native.js'
import { estimateWeightBytes, readModelCard } from '../../engine/registry/index.js'
import { SMOLLM2_FILE, smollm2Card } from '../support/smollm2.js'

let addon: NativeAddon
const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value))
const readGguf = (path: string) => addon.readGguf(path)
beforeAll(() => {
  addon = loadAddon()
})

test('the card of the embedded model is the same with both readers', () => {
  expect(plain(readModelCard(SMOLLM2_FILE, readGguf))).toEqual(plain(smollm2Card()))
})

describe('estimates', () => {
  let device: NativeDevice
  beforeAll(() => {
    device = addon.openDevice({ kind: 'cpu', index: 0, threads: 2, kvArenaBytes: 1 << 20 })
  })
  afterAll(() => device.close())

  test.each(['fp16', 'int8', 'int4'] as const)(
    '%s: the bytes of the rung are known before it is loaded',
    async (precision) => {
      const card = readModelCard(SMOLLM2_FILE, readGguf)
      const { spec, files } = card
      const limits = { maxSlots: 4, maxBatchTokens: 64, blockSize: 16 }
      const model = await device.loadModel({ spec, files, weights: card.weights, precision, ...limits })
      const { weightBytes } = model
      await model.unload()
      expect(estimateWeightBytes(card, precision)).toBe(weightBytes)
    },
  )
})

test('hostile files: an error that names file and reason, no memory for what they claim', () => {
  const folder = new URL('../fixtures/hostile/', import.meta.url)
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the fixture's own shape
  const index = JSON.parse(readFileSync(new URL('index.json', folder), 'utf8')) as { path: string }[]
  const files = index.map(({ path }) => path).filter((path) => path.startsWith('gguf/'))
  expect(files.length).toBeGreaterThan(40)
  const before = process.memoryUsage.rss()
  for (const path of files) {
    const file = fileURLToPath(new URL(path, folder))
    expect(() => readModelCard(file, readGguf)).toThrow(file)
  }
  expect(process.memoryUsage.rss() - before).toBeLessThan(64 * 2 ** 20)
})
