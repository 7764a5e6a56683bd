/** Tensors of a Hugging Face checkpoint to weights: names, shapes and storage of every family. */
import type { HfConfig } from './hf-config.js'
import { readRange } from './json-file.js'
import { invalidFile, type ModelFileError, unsupported } from './model-file-error.js'
import type { ModuleStorage } from './quantization-config.js'
import { expectedTensors, type ExpectedTensor, groupCount, layoutFault, type Quantized } from './quantized-layout.js'
import { elementsOf, plainWeight, splitRows, type StoredWeight, type TensorRef } from './stored-weight.js'

const FLOATS = ['f32', 'f16', 'bf16']

/** Tensors that carry nothing the computation needs: buffers, and scales of activations and KV caches. */
const IGNORED =
  /(?:\.rotary_emb\.inv_freq|\.(?:input|output|activation)_(?:scale|zero_point)|\.[qkv]_scale|\.weight_shape)$/

/** A linear module: parts are the slots its rows belong to, in order. */
interface Linear {
  module: string
  inputs: number
  parts: readonly { slot: string; rows: number }[]
  /** Slot of all rows together, for methods whose rows cannot be told apart by bytes. */
  whole: string
  bias: boolean
}

interface Norm {
  tensor: string
  slot: string
  size: number
}

/** What is needed to find a module's tensors. */
export interface WeightInputs {
  /** For messages: the file or folder. */
  path: string
  config: HfConfig
  files: readonly string[]
  tensors: ReadonlyMap<string, TensorRef>
  storageOf: ModuleStorage
}

/**
 * Every weight of the model with its tensors, checked for type and shape. Throws ModelFileError; what is contradictory
 * is named before what is missing.
 */
export function mapHfWeights(inputs: WeightInputs): StoredWeight[] {
  const mapper = new Mapper(inputs)
  const { spec, tied } = inputs.config
  mapper.plain('model.embed_tokens.weight', 'embed', [spec.vocabSize, spec.hiddenSize])
  for (let layer = 0; layer < spec.numLayers; layer++) {
    for (const { tensor, slot, size } of layerNorms(inputs.config, layer)) mapper.plain(tensor, slot, [size])
    for (const linear of layerLinears(inputs.config, layer)) mapper.linear(linear)
  }
  mapper.plain('model.norm.weight', 'final_norm', [spec.hiddenSize])
  mapper.head(tied)
  return mapper.finish()
}

function layerNorms({ family, spec }: HfConfig, layer: number): Norm[] {
  const { hiddenSize, headDim } = spec
  const norm = (module: string, slot: string, size = hiddenSize): Norm => ({
    tensor: `model.layers.${layer}.${module}.weight`,
    slot: `layers.${layer}.${slot}`,
    size,
  })
  const qk = [norm('self_attn.q_norm', 'q_norm', headDim), norm('self_attn.k_norm', 'k_norm', headDim)]
  const outer = family.gemma
    ? [
        norm('post_attention_layernorm', 'post_attn_norm'),
        norm('pre_feedforward_layernorm', 'ffn_norm'),
        norm('post_feedforward_layernorm', 'post_ffn_norm'),
      ]
    : [norm('post_attention_layernorm', 'ffn_norm')]
  return [norm('input_layernorm', 'attn_norm'), ...(family.qkNorm ? qk : []), ...outer]
}

function layerLinears({ family, raw, spec }: HfConfig, layer: number): Linear[] {
  const { hiddenSize, intermediateSize: ffn, numHeads, numKvHeads, headDim } = spec
  const q = numHeads * headDim
  const kv = numKvHeads * headDim
  const slot = (name: string) => `layers.${layer}.${name}`
  const linear = (
    module: string,
    inputs: number,
    bias: boolean,
    whole: string,
    ...rows: [string, number][]
  ): Linear => ({
    module: `model.layers.${layer}.${module}`,
    inputs,
    bias,
    whole: slot(whole),
    parts: rows.map(([name, count]) => ({ slot: slot(name), rows: count })),
  })
  const one = (module: string, name: string, rows: number, inputs: number, bias: boolean) =>
    linear(module, inputs, bias, name, [name, rows])
  const qkvBias = family.qkvBias(raw)
  const mlpBias = family.mlpBias(raw)
  const attention = family.fused
    ? [linear('self_attn.qkv_proj', hiddenSize, qkvBias, 'qkv', ['q', q], ['k', kv], ['v', kv])]
    : [
        one('self_attn.q_proj', 'q', q, hiddenSize, qkvBias),
        one('self_attn.k_proj', 'k', kv, hiddenSize, qkvBias),
        one('self_attn.v_proj', 'v', kv, hiddenSize, qkvBias),
      ]
  const gateUp = family.fused
    ? [linear('mlp.gate_up_proj', hiddenSize, mlpBias, 'gate_up', ['gate', ffn], ['up', ffn])]
    : [one('mlp.gate_proj', 'gate', ffn, hiddenSize, mlpBias), one('mlp.up_proj', 'up', ffn, hiddenSize, mlpBias)]
  return [
    ...attention,
    one('self_attn.o_proj', 'o', hiddenSize, q, family.outputBias(raw)),
    ...gateUp,
    one('mlp.down_proj', 'down', hiddenSize, ffn, mlpBias),
  ]
}

/** Collects weights and keeps count of the tensors that have found their place. */
class Mapper {
  readonly #weights: StoredWeight[] = []
  readonly #unplaced: Set<string>
  #missing: ModelFileError | undefined

  constructor(private readonly inputs: WeightInputs) {
    this.#unplaced = new Set(inputs.tensors.keys())
  }

  /** A float tensor of exactly this shape. */
  plain(name: string, slot: string, shape: number[]): void {
    const ref = this.#take(name)
    if (ref) this.#weights.push(plainWeight(slot, shape, this.#checked(name, ref, FLOATS, [shape])))
  }

  /** The output head, where it is not the embedding. A quantized one counts also in a model that is otherwise tied. */
  head(tied: boolean): void {
    const { vocabSize, hiddenSize } = this.inputs.config.spec
    const dense = this.inputs.tensors.get('lm_head.weight')
    const quantized = this.inputs.tensors.has('lm_head.qweight') || this.inputs.tensors.has('lm_head.weight_packed')
    if (tied && !quantized) {
      if (dense) this.#take('lm_head.weight')
      return
    }
    const parts = [{ slot: 'head', rows: vocabSize }]
    this.linear({ module: 'lm_head', inputs: hiddenSize, parts, whole: 'head', bias: false })
  }

  linear(linear: Linear): void {
    const { module, inputs: k, parts, bias } = linear
    const { path, tensors, storageOf } = this.inputs
    const n = parts.reduce((sum, { rows }) => sum + rows, 0)
    const storage = storageOf(module)
    const fault = storage.method === 'plain' ? undefined : layoutFault(storage, n, k)
    if (fault) throw invalidFile(path, `${module}: ${fault}`)
    // A float matrix is what it is, whatever the quantization config says of the module.
    const dense = tensors.get(`${module}.weight`)
    const plain = storage.method === 'plain' || (dense !== undefined && FLOATS.includes(dense.type))
    if (plain) this.#dense(linear, n)
    else this.#quantized(linear, storage, n)
    // Old GPTQ files have a bias of zeros on every module.
    if (bias || (!plain && tensors.has(`${module}.bias`))) this.#bias(linear, n, plain)
  }

  finish(): StoredWeight[] {
    if (this.#missing) throw this.#missing
    const extra = [...this.#unplaced].find((name) => !IGNORED.test(name))
    if (extra === undefined) return this.#weights
    const { raw, spec } = this.inputs.config
    throw unsupported(
      this.inputs.path,
      `tensor ${short(extra)} has no place in a ${raw.model_type} model of ${spec.numLayers} layers`,
    )
  }

  #dense({ module, inputs, parts }: Linear, n: number): void {
    const name = `${module}.weight`
    const ref = this.#take(name)
    if (ref) this.#weights.push(...splitRows(this.#checked(name, ref, FLOATS, [[n, inputs]]), parts))
  }

  #bias({ module, whole, parts }: Linear, n: number, plain: boolean): void {
    const name = `${module}.bias`
    const ref = this.#take(name)
    if (!ref) return
    this.#checked(name, ref, FLOATS, [[n]])
    const biases = plain ? parts : [{ slot: whole, rows: n }]
    const named = biases.map(({ slot, rows }) => ({ slot: `${slot}_bias`, rows }))
    this.#weights.push(...splitRows(ref, named))
  }

  #quantized({ module, inputs: k, whole, parts }: Linear, storage: Quantized, n: number): void {
    const found: StoredWeight['tensors'] = {}
    for (const expected of expectedTensors(storage, n, k)) {
      const ref = this.#expected(module, expected)
      if (ref) found[expected.role] = ref
    }
    if (found.groupIndex) this.#checkGroupIndex(module, found.groupIndex, groupCount(storage, k))
    const slot = parts.length === 1 ? parts[0]?.slot : undefined
    this.#weights.push({ slot: slot ?? whole, shape: [n, k], storage, tensors: found })
  }

  /** Small, and an entry outside would make the loader read other memory: checked before anything is loaded. */
  #checkGroupIndex(module: string, { file, offset, bytes }: TensorRef, groups: number): void {
    const path = this.inputs.files[file] ?? ''
    const data = readRange(path, offset, bytes)
    for (let at = 0; at < bytes; at += 4) {
      const group = data.readInt32LE(at)
      if (group >= 0 && group < groups) continue
      throw invalidFile(path, `${module}: input ${at / 4} is in group ${group} of ${groups}`)
    }
  }

  #expected(module: string, { suffix, types, shapes, optional }: ExpectedTensor): TensorRef | undefined {
    const name = `${module}.${suffix}`
    if (optional && !this.inputs.tensors.has(name)) return undefined
    const ref = this.#take(name)
    if (!ref) return undefined
    const { shape } = this.#checked(name, ref, types, shapes)
    return shape.length === 0 ? { ...ref, shape: [1] } : ref
  }

  #take(name: string): TensorRef | undefined {
    this.#unplaced.delete(name)
    const ref = this.inputs.tensors.get(name)
    if (ref === undefined) this.#missing ??= invalidFile(this.inputs.path, `tensor "${name}" is missing`)
    return ref
  }

  #checked(name: string, ref: TensorRef, types: readonly string[], shapes: readonly (readonly number[])[]): TensorRef {
    const { path } = this.inputs
    if (!types.includes(ref.type))
      throw invalidFile(path, `tensor "${name}" has type ${ref.type}; expected ${types.join(' or ')}`)
    const found = ref.shape.join(', ')
    if (!shapes.some((shape) => shape.join(', ') === found)) {
      const wanted = shapes.map((shape) => `[${shape.join(', ')}]`).join(' or ')
      throw invalidFile(path, `tensor "${name}" has shape [${found}]; the configuration says ${wanted}`)
    }
    if (elementsOf(ref) === 0) throw invalidFile(path, `tensor "${name}" is empty`)
    return ref
  }
}

function short(name: string): string {
  return JSON.stringify(name.slice(0, 200))
}
