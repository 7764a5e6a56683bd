/** The same weights in three formats give the same text. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { LoadRequest, NativeDevice, Precision } from '../../engine/native.js'
import { cpuDevice, generate, smollm2Request } from '../support/native-model.js'
import { asAwq, asFloats } from '../support/transcode.js'

const PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47]

let device: NativeDevice
let scratch: string
let formats: Record<'gguf' | 'floats' | 'awq', LoadRequest>
beforeAll(() => {
  device = loadAddon().openDevice(cpuDevice)
  scratch = mkdtempSync(join(tmpdir(), 'edgeshift-formats-'))
  const gguf = smollm2Request('fp16')
  formats = { gguf, floats: asFloats(gguf, join(scratch, 'floats')), awq: asAwq(gguf, join(scratch, 'awq')) }
}, 60_000)
afterAll(async () => {
  rmSync(scratch, { recursive: true })
  await device.close()
})

async function text(format: keyof typeof formats, precision: Precision): Promise<number[]> {
  const model = await device.loadModel({ ...formats[format], precision })
  const ids = await generate(model, PROMPT, 32)
  await model.unload()
  return ids
}

test('GGUF q4_1, float32 and AWQ gemv_fast at fp16', async () => {
  const gguf = await text('gguf', 'fp16')
  expect(await text('floats', 'fp16')).toEqual(gguf)
  expect(await text('awq', 'fp16')).toEqual(gguf)
}, 60_000)

test('GGUF q4_1 and AWQ gemv_fast at int4', async () => {
  expect(await text('awq', 'int4')).toEqual(await text('gguf', 'int4'))
}, 60_000)
