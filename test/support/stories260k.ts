/** The stories260K checkpoint in llama2.c's legacy format (header, then float32 tensors in a fixed order). */
import { readFileSync, statSync } from 'node:fs'
import type { LoadRequest, ModelSpec, Precision, WeightSource } from '../../engine/native.js'
import { plainWeight } from '../../engine/registry/stored-weight.js'
import { BLOCK_SIZE } from './native-model.js'

const PATH = new URL('../fixtures/stories260k/stories260K.bin', import.meta.url).pathname
const HEADER_BYTES = 28

/** Reads the header and lists the tensors where they lie; rotary pairs are interleaved in this format. */
export function stories260kRequest(precision: Precision): LoadRequest {
  const header = readFileSync(PATH).subarray(0, HEADER_BYTES)
  const [hidden = 0, ffn = 0, layers = 0, heads = 0, kvHeads = 0, vocab = 0] = Array.from({ length: 7 }, (_, i) =>
    header.readInt32LE(4 * i),
  )
  const headDim = hidden / heads
  const spec: ModelSpec = {
    vocabSize: vocab,
    hiddenSize: hidden,
    numLayers: layers,
    numHeads: heads,
    numKvHeads: kvHeads,
    headDim,
    intermediateSize: ffn,
    rmsNormEps: 1e-5,
    ropes: [
      {
        table: {
          invFreq: Float32Array.from({ length: headDim / 2 }, (_, i) => 10_000 ** ((-2 * i) / headDim)),
          scale: 1,
        },
      },
    ],
    layerRopes: new Int32Array(layers),
    ropeInterleaved: true,
    attentionScale: headDim ** -0.5,
    windows: new Int32Array(layers),
    activation: 'silu',
    normWeightOffset: 0,
    embeddingScale: 1,
    attentionSoftcap: 0,
    finalSoftcap: 0,
    postNorms: false,
  }
  const kv = kvHeads * headDim
  const weights: WeightSource[] = []
  let offset = HEADER_BYTES
  const add = (slot: string, ...shape: number[]): void => {
    const bytes = 4 * shape.reduce((product, n) => product * n, 1)
    weights.push(plainWeight(slot, shape, { file: 0, offset, bytes, type: 'f32', shape }))
    offset += bytes
  }
  const addLayers = (name: string, ...shape: number[]): void => {
    for (let i = 0; i < layers; i++) add(`layers.${i}.${name}`, ...shape)
  }
  add('embed', vocab, hidden)
  addLayers('attn_norm', hidden)
  addLayers('q', hidden, hidden)
  addLayers('k', kv, hidden)
  addLayers('v', kv, hidden)
  addLayers('o', hidden, hidden)
  addLayers('ffn_norm', hidden)
  addLayers('gate', ffn, hidden)
  addLayers('down', hidden, ffn)
  addLayers('up', ffn, hidden)
  add('final_norm', hidden)
  if (offset > statSync(PATH).size) throw new Error('stories260K.bin is shorter than its header says')
  return { spec, files: [PATH], weights, precision, maxSlots: 8, maxBatchTokens: 256, blockSize: BLOCK_SIZE }
}
