/** edgeshift keys: makes, lists and revokes API keys. */
import { Command, InvalidArgumentError, Option } from 'commander'
import { loadConfig } from '../../engine/config/index.js'
import { createKey, KeyEditError, type KeyRights, revokeKey } from '../keys/edit.js'
import type { KeyEntry } from '../keys/key-file.js'
import { loadKeyFile } from '../keys/watch.js'
import { URGENCIES, type Urgency } from '../urgency.js'

interface CreateFlags {
  config: string
  name: string
  model?: string[]
  requestsPerMinute?: number
  tokensPerMinute?: number
  maxConcurrent?: number
  maxWaiting?: number
  weight?: number
  priorityCeiling?: number
  class?: Urgency
  admin?: boolean
}

/** The command with its three subcommands; `fail` ends the program. */
export function keysCommand(configOption: () => Option, fail: (error: unknown) => never): Command {
  const guarded =
    <Args extends unknown[]>(work: (...args: Args) => void) =>
    (...args: Args): void => {
      try {
        work(...args)
      } catch (error) {
        fail(error)
      }
    }
  const command = new Command('keys').description('make, list and revoke API keys')
  command
    .command('create')
    .description('make a key and print it, once')
    .addOption(configOption())
    .requiredOption('--name <name>', 'whose key it is')
    .option('--model <id...>', 'models it may use; default: all')
    .option('--requests-per-minute <n>', 'most requests a minute', integer)
    .option('--tokens-per-minute <n>', 'most tokens of prompts and answers a minute', integer)
    .option('--max-concurrent <n>', 'most requests in flight at a time', integer)
    .option('--max-waiting <n>', 'of these, most that wait', integer)
    .option('--weight <n>', 'its share of a busy box against keys of weight 1', integer)
    .option('--priority-ceiling <n>', 'most urgent priority it may ask for; lower is more urgent (default: 0)', integer)
    .addOption(new Option('--class <class>', 'what its requests are that name no priority').choices(URGENCIES))
    .option('--admin', 'may read metrics and load, unload and pin models')
    .action(guarded(create))
  command
    .command('list')
    .description('list the keys and what they may do')
    .addOption(configOption())
    .action(
      guarded(({ config }: { config: string }) => {
        const { file, modelIds } = keyFileOf(config)
        const { entries, remarks } = loadKeyFile(file, modelIds)
        console.log(formatKeys(entries))
        for (const remark of remarks) console.error(remark)
      }),
    )
  command
    .command('revoke')
    .description('remove a key')
    .argument('<id-or-name>')
    .addOption(configOption())
    .action(
      guarded((idOrName: string, { config }: { config: string }) => {
        const { id, name } = revokeKey(keyFileOf(config).file, idOrName)
        console.log(`revoked ${id} (${name})`)
      }),
    )
  return command
}

function create({ config, name, ...flags }: CreateFlags): void {
  const { file, modelIds } = keyFileOf(config)
  const key = createKey(file, modelIds, name, rightsOf(flags))
  console.error(`added to ${file}; this key is not shown again:`)
  console.log(key)
}

function rightsOf(flags: Omit<CreateFlags, 'config' | 'name'>): KeyRights {
  return {
    ...(flags.model && { models: flags.model }),
    ...(flags.requestsPerMinute !== undefined && { requests_per_minute: flags.requestsPerMinute }),
    ...(flags.tokensPerMinute !== undefined && { tokens_per_minute: flags.tokensPerMinute }),
    ...(flags.maxConcurrent !== undefined && { max_concurrent: flags.maxConcurrent }),
    ...(flags.maxWaiting !== undefined && { max_waiting: flags.maxWaiting }),
    ...(flags.weight !== undefined && { weight: flags.weight }),
    ...(flags.priorityCeiling !== undefined && { priority_ceiling: flags.priorityCeiling }),
    ...(flags.class && { class: flags.class }),
    ...(flags.admin && { admin: true }),
  }
}

/** The key file that a configuration names. Throws ConfigError, KeyEditError. */
function keyFileOf(config: string): { file: string; modelIds: string[] } {
  const { server, models } = loadConfig(config)
  const { api_keys_file: file } = server
  if (file === undefined) throw new KeyEditError(`${config}: server.api_keys_file is not set; set it to use keys`)
  return { file, modelIds: models.map(({ id }) => id) }
}

function integer(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError('expected a whole number')
  return value
}

/** One line per key, columns aligned. */
export function formatKeys(entries: readonly KeyEntry[]): string {
  const head = [
    'ID',
    'NAME',
    'MODELS',
    'REQUESTS/MIN',
    'TOKENS/MIN',
    'AT A TIME',
    'WAITING',
    'WEIGHT',
    'PRIORITY FROM',
    'CLASS',
    'ADMIN',
  ]
  const rows = entries.map((entry) => [
    entry.id,
    entry.name,
    entry.models?.join(',') ?? 'all',
    String(entry.requests_per_minute ?? '-'),
    String(entry.tokens_per_minute ?? '-'),
    String(entry.max_concurrent ?? '-'),
    String(entry.max_waiting ?? '-'),
    String(entry.weight ?? 1),
    String(entry.priority_ceiling),
    entry.class ?? '-',
    entry.admin ? 'yes' : 'no',
  ])
  const widths = head.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)))
  return [head, ...rows]
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}
