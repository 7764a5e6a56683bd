/** edgeshift models: what is resident on a running gateway, and what shall be. */
import { Command, Option } from 'commander'
import { z } from 'zod'
import { type Address, loadConfig } from '../../engine/config/index.js'
import { formatAddress } from '../listeners.js'
import { formatBytes } from './banner.js'

/** The gateway cannot be asked or refuses; the message is one line for a person. */
export class AdminError extends Error {
  constructor(message: string) {
    super(message)
    this.name = 'AdminError'
  }
}

interface Flags {
  config: string
  url?: string
  key?: string
}

const variantSchema = z.object({
  name: z.string(),
  state: z.string(),
  device: z.string(),
  weight_bytes: z.number(),
  needed_bytes: z.number(),
  pinned: z.boolean(),
  running: z.number(),
  waiting: z.number(),
  error: z.string().optional(),
})
const residencySchema = z.object({
  variants: z.array(variantSchema),
  devices: z.array(
    z.object({
      id: z.string(),
      budget_bytes: z.number(),
      used_bytes: z.number(),
      ledger: z.array(z.object({ kind: z.string(), bytes: z.number() })),
    }),
  ),
  config_remarks: z.array(z.string()).default([]),
})
const failureSchema = z.object({ error: z.object({ message: z.string(), code: z.string() }) })

type Variant = z.infer<typeof variantSchema>

const ACTIONS: readonly [name: string, description: string][] = [
  ['load', 'load a rung, at the cost of idle ones that are not pinned if need be'],
  ['unload', 'unload an idle rung'],
  ['pin', 'never unload a rung to make room'],
  ['unpin', 'let a rung be unloaded again'],
]

/** The command with its subcommands; `fail` ends the program. */
export function modelsCommand(configOption: () => Option, fail: (error: unknown) => never): Command {
  const command = new Command('models').description('see and change what a running gateway holds in memory')
  const add = (name: string, description: string): Command =>
    command
      .command(name)
      .description(description)
      .addOption(configOption())
      .option('--url <url>', 'the gateway; default: as the configuration says')
      .addOption(new Option('--key <key>', 'API key with admin: true').env('EDGESHIFT_KEY'))
  add('list', 'list the rungs with their state and bytes').action((flags: Flags) =>
    ask(flags, 'GET', '/admin/models')
      .then((answer) => console.log(formatResidency(residencySchema.parse(answer))))
      .catch(fail),
  )
  for (const [name, description] of ACTIONS) {
    add(name, description)
      .argument('<model>', '"id:rung", or an id or tag where there is one rung')
      .action((model: string, flags: Flags) =>
        ask(flags, 'POST', `/admin/models/${name}`, { model })
          .then((answer) => console.log(variantRow(variantSchema.parse(answer)).join('  ')))
          .catch(fail),
      )
  }
  return command
}

async function ask({ config, url, key }: Flags, method: string, path: string, body?: object): Promise<unknown> {
  const base = (url ?? urlOf(config)).replace(/\/+$/, '')
  const response = await fetch(base + path, {
    method,
    headers: {
      ...(key !== undefined && { authorization: `Bearer ${key}` }),
      ...(body && { 'content-type': 'application/json' }),
    },
    ...(body && { body: JSON.stringify(body) }),
  }).catch((error: unknown) => {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause.message : String(error)
    throw new AdminError(`${base} does not answer: ${cause}`)
  })
  const answer: unknown = await response.json().catch(() => undefined)
  if (response.ok) return answer
  const failure = failureSchema.safeParse(answer)
  throw new AdminError(
    failure.success
      ? `${failure.data.error.code}: ${failure.data.error.message}`
      : `${base} answers ${response.status}`,
  )
}

/** Where a gateway with this configuration is reached from its own machine. */
function urlOf(config: string): string {
  const { server } = loadConfig(config)
  return `http${server.tls_cert === undefined ? '' : 's'}://${formatAddress(reachable(server.http))}`
}

function reachable({ host, port }: Address): Address {
  if (host === '0.0.0.0') return { host: '127.0.0.1', port }
  return host === '::' ? { host: '::1', port } : { host, port }
}

function variantRow({
  name,
  state,
  device,
  weight_bytes,
  needed_bytes,
  pinned,
  running,
  waiting,
  error,
}: Variant): string[] {
  const bytes = formatBytes(state === 'ready' ? weight_bytes : needed_bytes)
  const work = running + waiting > 0 ? `${running} running, ${waiting} waiting` : ''
  return [name, state, bytes, device, [pinned ? 'pinned' : '', work, error ?? ''].filter(Boolean).join(', ')]
}

/** Rungs in aligned columns, then the devices, then what of the configuration file is not in use. */
export function formatResidency({
  variants,
  devices,
  config_remarks: remarks,
}: z.infer<typeof residencySchema>): string {
  const rows = [['RUNG', 'STATE', 'BYTES', 'DEVICE', ''], ...variants.map(variantRow)]
  const widths = [0, 1, 2, 3].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))
  const lines = rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  )
  const budgets = devices.map(
    ({ id, budget_bytes, used_bytes, ledger }) =>
      `${id}: ${formatBytes(used_bytes)} of ${formatBytes(budget_bytes)} (${sumsByKind(ledger)})`,
  )
  return [...lines, '', ...budgets, ...(remarks.length > 0 ? ['', ...remarks] : [])].join('\n')
}

/** "weights 92 MB, kv 1 GB, ...", what takes nothing left out. */
function sumsByKind(ledger: readonly { kind: string; bytes: number }[]): string {
  const sums = new Map<string, number>()
  for (const { kind, bytes } of ledger) sums.set(kind, (sums.get(kind) ?? 0) + bytes)
  return Array.from(sums, ([kind, bytes]) => (bytes > 0 ? `${kind} ${formatBytes(bytes)}` : ''))
    .filter(Boolean)
    .join(', ')
}
