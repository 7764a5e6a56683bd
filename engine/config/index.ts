export { duplicates } from './check.js'
export { loadConfig, parseConfig } from './load.js'
export { type OwnPart, ownPart } from './own-part.js'
export { MAX_REQUEST_BYTES } from './message-bytes.js'
export { nearest } from './nearest.js'
export { ConfigError, type Finding } from './problem.js'
export {
  type Config,
  defaultDevices,
  type DeviceConfig,
  LADDER,
  type ModelConfig,
  type Precision,
  type VariantConfig,
} from './schema.js'
export { locateRemarks, parseStrict, readText } from './strict.js'
export { type Address, gigabytesToBytes, isLoopback, MAX_TIMER_MS } from './values.js'
export { ConfigWatcher } from './watch.js'
