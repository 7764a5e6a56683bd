/**
 * The fields of a config.json of a Hugging Face checkpoint that are read, in the spelling of transformers 4 (`rope_theta`,
 * `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`). Bounds are those of any model one box can hold; they
 * keep every later product inside 2^53.
 */
import { z } from 'zod'

const size = (max: number) => z.int().min(1).max(max)
/** Tokens of the longest context that a file may name. */
export const MAX_CONTEXT = 2 ** 31 - 1
const section = z.record(z.string(), z.unknown())
const tokenId = z
  .int()
  .min(0)
  .max(1 << 24)

/** The fields of config.json that are read, with their types and ranges; others are kept as they are. */
export const configSchema = z.looseObject({
  model_type: z.string(),
  architectures: z.array(z.string()).max(16).nullish(),
  vocab_size: size(1 << 24),
  hidden_size: size(1 << 17),
  intermediate_size: size(1 << 20),
  num_hidden_layers: size(1024),
  num_attention_heads: size(1024),
  num_key_value_heads: size(1024).nullish(),
  head_dim: size(1024).nullish(),
  max_position_embeddings: size(MAX_CONTEXT),
  rms_norm_eps: z.number().positive().max(1),
  hidden_act: z.string().nullish(),
  hidden_activation: z.string().nullish(),
  tie_word_embeddings: z.boolean().nullish(),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  rope_theta: z.number().nullish(),
  rope_scaling: section.nullish(),
  rope_parameters: section.nullish(),
  rope_local_base_freq: z.number().gt(1).max(1e12).nullish(),
  partial_rotary_factor: z.number().positive().max(1).nullish(),
  original_max_position_embeddings: size(MAX_CONTEXT).nullish(),
  sliding_window: size(MAX_CONTEXT).nullish(),
  use_sliding_window: z.boolean().nullish(),
  max_window_layers: z.int().min(0).max(1024).nullish(),
  sliding_window_pattern: size(1024).nullish(),
  _sliding_window_pattern: size(1024).nullish(),
  layer_types: z
    .array(z.enum(['full_attention', 'sliding_attention']))
    .max(1024)
    .nullish(),
  no_rope_layers: z.array(z.int().min(0).max(1)).max(1024).nullish(),
  no_rope_layer_interval: size(1024).nullish(),
  query_pre_attn_scalar: z.number().positive().max(1e6).nullish(),
  attn_logit_softcapping: z.number().positive().max(1e6).nullish(),
  final_logit_softcapping: z.number().positive().max(1e6).nullish(),
  eos_token_id: z.union([tokenId, z.array(tokenId).max(64)]).nullish(),
  bos_token_id: tokenId.nullish(),
  quantization_config: section.nullish(),
})

/** config.json with every field that is read checked for type and range. */
export type RawConfig = z.infer<typeof configSchema>
