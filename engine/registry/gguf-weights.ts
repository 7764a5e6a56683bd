/** The tensors of a GGUF file and the weights they are. */
import type { TensorInfo } from '../native.js'
import type { GgufFamily } from './gguf-families.js'
import { ROPE_TENSORS } from './gguf-rope.js'
import type { GgufSizes, GgufSource } from './gguf-source.js'
import type { Metadata } from './metadata.js'
import { splitRows, type StoredWeight } from './stored-weight.js'

/** Types the native loader converts. */
const TENSOR_TYPES = new Set(
  (
    'f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s ' +
    'iq4_nl iq4_xs tq1_0 tq2_0 mxfp4 nvfp4'
  ).split(' '),
)

/** A tensor of the architecture: its name in the file, its slot, its shape, whether it may be absent. */
interface Place {
  tensor: string
  slot: string
  shape: number[]
  optional?: boolean
  /** Slots that its rows belong to, in order, where there are several. */
  parts?: { slot: string; rows: number }[]
}

function layerPlaces(family: GgufFamily, layer: number, { hidden, ffn, heads, kvHeads, headDim }: GgufSizes): Place[] {
  const q = heads * headDim
  const kv = kvHeads * headDim
  const place = (tensor: string, slot: string, ...shape: number[]): Place => ({
    tensor: `blk.${layer}.${tensor}`,
    slot: `layers.${layer}.${slot}`,
    shape,
  })
  const optional = (tensor: string, slot: string, ...shape: number[]): Place => ({
    ...place(tensor, slot, ...shape),
    optional: true,
  })
  const rows = (tensor: string, columns: number, ...parts: [slot: string, rows: number][]): Place => ({
    ...place(
      tensor,
      '',
      parts.reduce((sum, [, count]) => sum + count, 0),
      columns,
    ),
    parts: parts.map(([slot, count]) => ({ slot: `layers.${layer}.${slot}`, rows: count })),
  })
  return [
    place('attn_norm.weight', 'attn_norm', hidden),
    ...(family.fused
      ? [rows('attn_qkv.weight', hidden, ['q', q], ['k', kv], ['v', kv])]
      : [
          place('attn_q.weight', 'q', q, hidden),
          place('attn_k.weight', 'k', kv, hidden),
          place('attn_v.weight', 'v', kv, hidden),
        ]),
    place('attn_output.weight', 'o', hidden, q),
    ...(family.gemma ? [place('post_attention_norm.weight', 'post_attn_norm', hidden)] : []),
    ...(family.qkNorm
      ? [place('attn_q_norm.weight', 'q_norm', headDim), place('attn_k_norm.weight', 'k_norm', headDim)]
      : []),
    optional('attn_q.bias', 'q_bias', q),
    optional('attn_k.bias', 'k_bias', kv),
    optional('attn_v.bias', 'v_bias', kv),
    place('ffn_norm.weight', 'ffn_norm', hidden),
    ...(family.fused
      ? [rows('ffn_up.weight', hidden, ['gate', ffn], ['up', ffn])]
      : [place('ffn_gate.weight', 'gate', ffn, hidden), place('ffn_up.weight', 'up', ffn, hidden)]),
    place('ffn_down.weight', 'down', hidden, ffn),
    ...(family.gemma ? [place('post_ffw_norm.weight', 'post_ffn_norm', hidden)] : []),
  ]
}

function places(family: GgufFamily, sizes: GgufSizes): Place[] {
  const { vocab, hidden } = sizes
  return [
    { tensor: 'token_embd.weight', slot: 'embed', shape: [vocab, hidden] },
    ...Array.from({ length: sizes.layers }, (_, layer) => layerPlaces(family, layer, sizes)).flat(),
    { tensor: 'output_norm.weight', slot: 'final_norm', shape: [hidden] },
    { tensor: 'output.weight', slot: 'head', shape: [vocab, hidden], optional: true },
  ]
}

/** Every tensor finds its slot, every slot its tensor: one left over would change the result unseen. */
export function mapGgufWeights(
  { metadata, family, key }: GgufSource,
  sizes: GgufSizes,
  tensors: ReadonlyMap<string, TensorInfo>,
): StoredWeight[] {
  const unplaced = new Set([...tensors.keys()].filter((name) => !ROPE_TENSORS.has(name)))
  const weights: StoredWeight[] = []
  for (const { tensor, slot, shape, optional, parts } of places(family, sizes)) {
    const info = tensors.get(tensor)
    if (info === undefined && optional) continue
    if (info === undefined) throw metadata.invalid(`tensor "${tensor}" is missing`)
    checkTensor(metadata, info, shape)
    unplaced.delete(tensor)
    const { offset, bytes, type } = info
    weights.push(...splitRows({ file: 0, offset, bytes, type, shape }, parts ?? [{ slot, rows: shape[0] ?? 0 }]))
  }
  const [extra] = unplaced
  if (extra !== undefined)
    throw metadata.unsupported(
      `tensor ${JSON.stringify(extra.slice(0, 64))} has no place in a ${key('').slice(0, -1)} model of ${sizes.layers} layers`,
    )
  return weights
}

function checkTensor(metadata: Metadata, info: TensorInfo, shape: readonly number[]): void {
  const found = `[${info.shape.join(', ')}]`
  if (found !== `[${shape.join(', ')}]`)
    throw metadata.invalid(`tensor "${info.name}" has shape ${found}; the metadata says [${shape.join(', ')}]`)
  if (!TENSOR_TYPES.has(info.type))
    throw metadata.unsupported(
      `tensor "${info.name}" has type ${info.type}; supported are ${[...TENSOR_TYPES].join(', ')}`,
    )
}
