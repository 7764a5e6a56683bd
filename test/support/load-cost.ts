/** What a load costs: peak resident memory and time, beside reading the same bytes. Linux. */
import { execFileSync } from 'node:child_process'
import { closeSync, fsyncSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import type { LoadRequest, ModelSpec, NativeDevice, WeightSource } from '../../engine/native.js'
import { plainWeight } from '../../engine/registry/stored-weight.js'
import { BLOCK_SIZE } from './native-model.js'

const status = (field: string): number =>
  Number(new RegExp(`${field}:\\s+(\\d+)`).exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? 0) * 1024

/** Cost of one load. */
export interface LoadCost {
  weightBytes: number
  workspaceBytes: number
  /** Largest resident memory during the load above that before it. */
  peakBytes: number
  milliseconds: number
  /** Of all its threads together: what other work on the machine does not lengthen. */
  processorMilliseconds: number
}

/** Loads and unloads. */
export async function measureLoad(device: NativeDevice, request: LoadRequest): Promise<LoadCost> {
  const before = status('VmRSS')
  // Forgets the peak so far.
  writeFileSync('/proc/self/clear_refs', '5')
  const start = performance.now()
  const used = process.cpuUsage()
  const model = await device.loadModel(request)
  const milliseconds = performance.now() - start
  const { user, system } = process.cpuUsage(used)
  const peakBytes = status('VmHWM') - before
  const { weightBytes, workspaceBytes } = model
  await model.unload()
  return { weightBytes, workspaceBytes, peakBytes, milliseconds, processorMilliseconds: (user + system) / 1000 }
}

/** Wall-clock and processor time. */
export type Times = Pick<LoadCost, 'milliseconds' | 'processorMilliseconds'>

/** Runs a script of `work` in a process of its own, whose memory no load's peak has, and times that. */
function timed(setup: string, work: string, argument: string, env: Record<string, string> = {}): Times {
  const script = `
    const { openSync, readSync, statSync } = require('node:fs')
    ${setup}
    const start = performance.now()
    const used = process.cpuUsage()
    ${work}
    const milliseconds = performance.now() - start
    const { user, system } = process.cpuUsage(used)
    console.log(milliseconds, (user + system) / 1000)`
  const options = { encoding: 'utf8', env: { ...process.env, ...env } } as const
  const [milliseconds = 0, processorMilliseconds = 0] = execFileSync(
    process.execPath,
    ['-e', script, argument],
    options,
  )
    .split(' ')
    .map(Number)
  return { milliseconds, processorMilliseconds }
}

/**
 * Reads a file from start to end, from the page cache when it is there: into one buffer of 1 MiB over and over, or
 * (fresh) into new memory, as a load must.
 */
export function measureRead(path: string, fresh: boolean): Times {
  const size = fresh ? 'statSync(process.argv[1]).size' : 1 << 20
  const setup = `const buffer = Buffer.alloc(${size}), file = openSync(process.argv[1], 'r')`
  return timed(setup, 'while (readSync(file, buffer, 0, buffer.length, null) > 0);', path)
}

/** Fills so many bytes of new memory, on huge pages where the system grants them, as the weights are. */
export function measureFill(bytes: number): Times {
  const env = { GLIBC_TUNABLES: 'glibc.malloc.hugetlb=1' }
  return timed('', 'Buffer.allocUnsafeSlow(Number(process.argv[1])).fill(1)', String(bytes), env)
}

/** Puts a file out of the page cache; false where the system did not, or has no tools to do and to see it. */
export function dropFromPageCache(path: string): boolean {
  try {
    execFileSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0', 'status=none'])
    return execFileSync('fincore', ['-nb', '-o', 'PAGES', path], { encoding: 'utf8' }).trim() === '0'
  } catch {
    return false
  }
}

const ELEMENT_BYTES = { f16: 2, bf16: 2, f32: 4 } as const

/** Writes the tensors of a model of this shape with small random floats and describes how to load them. */
export function writePlainModel(path: string, type: keyof typeof ELEMENT_BYTES, spec: ModelSpec): LoadRequest {
  const file = openSync(path, 'w')
  const noise = noiseOf(type)
  const weights: WeightSource[] = []
  let offset = 0
  const add = (slot: string, ...shape: number[]): void => {
    const bytes = shape.reduce((product, size) => product * size, ELEMENT_BYTES[type])
    weights.push(plainWeight(slot, shape, { file: 0, offset, bytes, type, shape }))
    for (let left = bytes; left > 0; left -= noise.length) writeSync(file, noise, 0, Math.min(left, noise.length))
    offset += bytes
  }
  const { hiddenSize: hidden, intermediateSize: ffn, numHeads, numKvHeads, headDim } = spec
  add('embed', spec.vocabSize, hidden)
  add('final_norm', hidden)
  for (let layer = 0; layer < spec.numLayers; layer++) {
    const slot = (name: string): string => `layers.${layer}.${name}`
    add(slot('attn_norm'), hidden)
    add(slot('q'), numHeads * headDim, hidden)
    add(slot('k'), numKvHeads * headDim, hidden)
    add(slot('v'), numKvHeads * headDim, hidden)
    add(slot('o'), hidden, numHeads * headDim)
    add(slot('ffn_norm'), hidden)
    add(slot('gate'), ffn, hidden)
    add(slot('up'), ffn, hidden)
    add(slot('down'), hidden, ffn)
  }
  // Only what is on the disk can be put out of the page cache.
  fsyncSync(file)
  closeSync(file)
  return { spec, files: [path], weights, precision: 'fp16', maxSlots: 1, maxBatchTokens: 16, blockSize: BLOCK_SIZE }
}

// A mebibyte of numbers around 0.01.
function noiseOf(type: keyof typeof ELEMENT_BYTES): Buffer {
  const bytes = Buffer.alloc(1 << 20)
  let seed = 1
  for (let i = 0; i < bytes.length; i += ELEMENT_BYTES[type]) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    const low = seed >>> 16
    if (type === 'f16') bytes.writeUInt16LE((low & 0x83ff) | 0x2000, i)
    else if (type === 'bf16') bytes.writeUInt16LE((low & 0x807f) | 0x3c00, i)
    else bytes.writeUInt32LE(((low & 0x807f) | 0x3c00) * 65_536 + (seed & 0xffff), i)
  }
  return bytes
}
