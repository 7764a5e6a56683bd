export { estimateWeightBytes } from './estimate.js'
export { type ModelAsset, type ModelCard, modelAssets, readModelCard } from './card.js'
export { ModelFileError } from './metadata.js'
