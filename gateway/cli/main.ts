#!/usr/bin/env node
import { fileURLToPath } from 'node:url'
import { Command, Option } from 'commander'
import { ConfigError, loadConfig } from '../../engine/config/index.js'
import type { EngineCommand } from '../engine-client/process.js'
import { formatAddress, ListenError } from '../listeners.js'
import { Gateway, VERSION } from '../main.js'
import { formatBanner } from './banner.js'

/** The engine beside this file: bundled, or from sources when this runs from sources; or the program given. */
function engineCommand(program: string | undefined): EngineCommand {
  const bundled = import.meta.url.endsWith('.js')
  const file = program ?? fileURLToPath(new URL(bundled ? './engine.js' : '../../engine/main.ts', import.meta.url))
  const loader = file.endsWith('.ts') ? ['--import', import.meta.resolve('tsx')] : []
  return { command: process.execPath, args: [...loader, file] }
}

/** Prints one line for failures that a person can act on; anything else keeps its stack. Ends the process. */
function fail(error: unknown): never {
  const known = error instanceof ConfigError || error instanceof ListenError
  console.error(known ? error.message : error)
  process.exit(1)
}

interface ServeFlags {
  config: string
  engine?: string
  logLevel: 'silent' | 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace'
}

async function serve({ config, engine, logLevel }: ServeFlags): Promise<void> {
  const gateway = await Gateway.start({ configFile: config, engine: engineCommand(engine), logLevel })
  stopOnSignal(gateway)
  const failed = await gateway.settled()
  if (failed) {
    console.error(`the engine does not start:\n${failed.lastLines.join('\n')}`)
    await gateway.stop(0)
    process.exit(1)
  }
  const { http, grpc } = gateway.addresses
  const { engineStatus: status, services } = gateway
  const addresses = { http: formatAddress(http), grpc: formatAddress(grpc) }
  console.log(formatBanner({ version: VERSION, ...addresses, models: services.models.list(), status }))
}

/** The first signal drains, the second one ends the process at once. */
function stopOnSignal(gateway: Gateway): void {
  let stopping = false
  const stop = (): void => {
    if (stopping) process.exit(1)
    stopping = true
    gateway.stop().then(() => process.exit(0), fail)
  }
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
}

function check({ config }: { config: string }): void {
  const { models } = loadConfig(config)
  console.log(`${config}: valid, ${models.map(({ id, variants }) => `${id} (${variants.length} rungs)`).join(', ')}`)
}

const configOption = (): Option => new Option('--config <file>', 'models.yaml to use').default('models.yaml')

const program = new Command('edgeshift').version(VERSION).description('On-prem gateway and engine for language models')
program
  .command('serve')
  .description('serve the models of a configuration')
  .addOption(configOption())
  .addOption(
    new Option('--log-level <level>', 'least severe lines to log (JSON lines on standard error)')
      .choices(['silent', 'fatal', 'error', 'warn', 'info', 'debug', 'trace'])
      .default('info'),
  )
  .addOption(new Option('--engine <program>', 'engine program to run instead of the built one (tests)').hideHelp())
  .action((flags: ServeFlags) => serve(flags).catch(fail))
program
  .command('check')
  .description('check a configuration and exit')
  .addOption(configOption())
  .action((flags: { config: string }) => {
    try {
      check(flags)
    } catch (error) {
      fail(error)
    }
  })
await program.parseAsync()
