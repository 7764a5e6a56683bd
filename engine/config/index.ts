export { loadConfig, parseConfig } from './load.js'
export { nearest } from './nearest.js'
export { ConfigError } from './problem.js'
export {
  type Config,
  defaultDevices,
  type DeviceConfig,
  type ModelConfig,
  type SchedulerConfig,
  type VariantConfig,
} from './schema.js'
export { type Address, gigabytesToBytes } from './values.js'
