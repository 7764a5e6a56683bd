export { estimateWeightBytes, type ModelAsset, type ModelCard, modelAssets, readModelCard } from './card.js'
export { ModelFileError } from './metadata.js'
