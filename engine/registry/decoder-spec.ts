/** Hyperparameters with the settings that rotary tables are computed from. */
import type { ModelSpec, RopeTable } from '../native.js'
import type { RopeSettings } from './rope.js'

/** Rotary tables of a group of layers. */
export interface LayerRope {
  settings: RopeSettings
  /** For prompts up to ropeLengthLimit(settings); longer ones take ropeTable(settings, prompt length). */
  table: RopeTable
}

/** Hyperparameters of every family served. */
export interface DecoderSpec extends ModelSpec {
  ropes: LayerRope[]
}
