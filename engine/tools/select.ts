/** Which files of a repository a model needs. Pure. */
import { type HubFile, PullError } from './hub.js'
import { formatBytes } from './units.js'

const TEXT_FILES = new Set([
  'config.json',
  'generation_config.json',
  'quantize_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
  'model.safetensors.index.json',
  'README.md',
  'LICENSE',
  'LICENSE.txt',
  'LICENSE.md',
])

/**
 * The safetensors of a repository with configuration and tokenizer; of one that has only GGUF files, or with `gguf`,
 * one .gguf: the one whose name contains `gguf` (case does not count). Throws PullError when that is not one file.
 */
export function selectFiles(files: readonly HubFile[], gguf: string | undefined): HubFile[] {
  const weights = files.filter(({ name }) => name.endsWith('.safetensors') && !/^(?:adapter|consolidated)/.test(name))
  const texts = files.filter(({ name }) => TEXT_FILES.has(name))
  if (gguf === undefined && weights.length > 0) return [...texts, ...weights]
  const candidates = files.filter(({ name }) => name.toLowerCase().endsWith('.gguf'))
  const wanted = candidates.filter(({ name }) => name.toLowerCase().includes((gguf ?? '').toLowerCase()))
  const [only, ...more] = wanted
  if (only === undefined) throw new PullError(noWeights(candidates, gguf))
  if (more.length > 0) throw new PullError(`choose one with --gguf: ${wanted.map(describe).join(', ')}`)
  return [...texts.filter(({ name }) => /^(?:README|LICENSE)/.test(name)), only]
}

function noWeights(candidates: readonly HubFile[], gguf: string | undefined): string {
  if (candidates.length > 0)
    return `no .gguf has ${JSON.stringify(gguf)} in its name: ${candidates.map(describe).join(', ')}`
  return 'it has no .safetensors and no .gguf'
}

function describe({ name, bytes }: HubFile): string {
  return `${name} (${formatBytes(bytes)})`
}
