/** edgeshift route: asks a running gateway what would serve a request. */
import { Command, Option } from 'commander'
import type { DryRun } from '../router/dry-run.js'
import { formatBytes } from './banner.js'

interface RouteFlags {
  url: string
  key?: string
  json?: boolean
  prompt?: string
  [field: string]: string | boolean | undefined
}

/** Flags that are fields of the body, by how commander names them. */
const NUMBERS = { promptTokens: 'prompt_tokens', maxTokens: 'max_tokens', memoryLimitGb: 'memory_limit_gb' }
const FIELDS = {
  ...NUMBERS,
  speedPriority: 'speed_priority',
  deadlineMs: 'deadline_ms',
  precision: 'precision',
  minPrecision: 'min_precision',
  degrade: 'degrade',
}
const TEXTS: ReadonlySet<string> = new Set(['precision', 'minPrecision', 'degrade'])

/** Asking failed: no gateway there, or it refused. */
export class RouteError extends Error {}

/** The command; `fail` ends the program. */
export function routeCommand(fail: (error: unknown) => never): Command {
  return new Command('route')
    .description('ask a running gateway what would serve a request; nothing is run')
    .argument('<model>', 'id, id:rung, tag or auto')
    .addOption(new Option('--url <url>', 'the gateway').default('http://127.0.0.1:8080'))
    .option('--prompt <text>', 'the prompt; or its length alone:')
    .option('--prompt-tokens <n>', 'length of the prompt')
    .option('--max-tokens <n>', 'most tokens of the answer')
    .option('--precision <name>', 'high, medium, low, fp16, int8 or int4')
    .option('--min-precision <name>', 'the worst rung that may serve')
    .option('--memory-limit-gb <gb>', 'most memory of its rung')
    .option('--speed-priority <share>', '0 = quality alone, 1 = speed alone')
    .option('--deadline-ms <ms>', 'time that it has')
    .option('--degrade <how>', 'allow or forbid')
    .option('--json', 'print the answer as it comes')
    .addOption(new Option('--key <key>', 'API key').env('EDGESHIFT_KEY'))
    .action((model: string, flags: RouteFlags) => ask(model, flags).catch(fail))
}

async function ask(model: string, flags: RouteFlags): Promise<void> {
  const { key } = flags
  const response = await fetch(new URL('/v1/route', flags.url), {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(key && { authorization: `Bearer ${key}` }) },
    body: JSON.stringify(bodyOf(model, flags)),
  }).catch((error: Error) => {
    throw new RouteError(`no gateway answers at ${flags.url}: ${error.message}`, { cause: error })
  })
  const answer: unknown = await response.json()
  if (!response.ok) throw new RouteError(JSON.stringify(answer))
  console.log(flags.json ? JSON.stringify(answer, null, 2) : formatDryRun(answer as DryRun))
}

function bodyOf(model: string, flags: RouteFlags): object {
  const fields = Object.entries(FIELDS).flatMap(([flag, field]) => {
    const value = flags[flag]
    return value === undefined ? [] : [[field, TEXTS.has(flag) ? value : Number(value)]]
  })
  return { model, ...(flags.prompt !== undefined && { prompt: flags.prompt }), ...Object.fromEntries(fields) }
}

/** The answer for people: the decision, its cost, and the ladder. */
export function formatDryRun(run: DryRun): string {
  const decision =
    run.decision === 'serve'
      ? [`${run.variant} on ${run.device || 'a device to be chosen'}`, `  ${run.reason}`]
      : [`${run.decision}${run.code ? ` (${run.code})` : ''}`, `  ${run.why}`]
  const rungs = (run.rungs ?? []).map(
    ({ id, status, needed_bytes: bytes, why }) =>
      `  ${id.padEnd(20)} ${status.padEnd(9)} ${formatBytes(bytes).padStart(8)}${why === undefined ? '' : `  ${why}`}`,
  )
  return [...decision, ...costLines(run), ...rungs].join('\n')
}

function costLines({
  load,
  waits_for: waitsFor,
  wait_ms: wait,
  first_token_ms: first,
  answer_ms: answer,
}: DryRun): string[] {
  const evicts = load?.evicts.map(({ variant }) => variant).join(', ')
  return [
    ...(load ? [`  loads ${formatBytes(load.bytes)} in about ${load.ms} ms${evicts ? `, evicts ${evicts}` : ''}`] : []),
    ...(waitsFor ? [`  waits for ${waitsFor.join(', ') || 'memory'} to come to rest`] : []),
    ...(first === undefined ? [] : [`  first token after ${first} ms, ${wait ?? 0} of them in the queue`]),
    ...(answer === undefined ? [] : [`  answer after ${answer} ms`]),
  ]
}
