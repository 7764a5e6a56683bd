export { loadConfig, parseConfig } from './load.js'
export { ConfigError, type ConfigProblem } from './problem.js'
export {
  LADDER,
  type Config,
  type DeviceConfig,
  type ModelConfig,
  type Precision,
  type SchedulerConfig,
  type VariantConfig,
} from './schema.js'
export { type Address, gigabytesToBytes } from './values.js'
