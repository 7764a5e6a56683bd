import { type Finding, type KeyPath } from './problem.js'
import { isDefaultDevice, LADDER, type ParsedConfig, type Precision } from './schema.js'
import { isLoopback } from './values.js'
import { nearest } from './nearest.js'

type Model = ParsedConfig['models'][number]

/** The rules between fields: what the schema cannot say of one value alone. */
export function checkConfig(config: ParsedConfig): Finding[] {
  const deviceIds = config.devices.map((device) => device.id)
  return [
    ...checkServer(config.server),
    ...checkEngines(config),
    ...duplicates(deviceIds, (index) => ['devices', index, 'id'], 'device id'),
    ...checkNames(config.models),
    ...config.models.flatMap((model, index) => checkModel(model, ['models', index], deviceIds)),
    ...checkScheduler(config.scheduler),
  ]
}

function checkServer(server: ParsedConfig['server']): Finding[] {
  const findings: Finding[] = []
  for (const key of ['http', 'grpc'] as const) {
    const { host } = server[key]
    if (isLoopback(host) || server.api_keys_file !== undefined) continue
    findings.push({
      path: ['server', key],
      message: `${host} is not a loopback address, and off loopback API keys are required: set server.api_keys_file (edgeshift keys create)`,
    })
  }
  for (const [given, missing] of [
    ['tls_cert', 'tls_key'],
    ['tls_key', 'tls_cert'],
  ] as const) {
    if (server[given] === undefined || server[missing] !== undefined) continue
    findings.push({ path: ['server', given], message: `needs ${missing} beside it` })
  }
  const { http, grpc } = server
  if (http.port !== 0 && http.port === grpc.port && http.host === grpc.host) {
    findings.push({ path: ['server', 'grpc'], message: 'the same address as server.http' })
  }
  return findings
}

function checkEngines({ server, devices }: ParsedConfig): Finding[] {
  if (server.engines === 'shared' || devices.length > 0) return []
  return [{ path: ['server', 'engines'], message: 'per_device needs a list of devices' }]
}

function checkScheduler(scheduler: ParsedConfig['scheduler']): Finding[] {
  if (scheduler.max_num_batched_tokens >= scheduler.max_num_seqs) return []
  const message = `${scheduler.max_num_batched_tokens} is less than max_num_seqs (${scheduler.max_num_seqs}): each running sequence needs one token a step`
  return [{ path: ['scheduler', 'max_num_batched_tokens'], message }]
}

/** A finding for every name that stands earlier in the list, too. */
export function duplicates(names: readonly string[], path: (index: number) => KeyPath, what: string): Finding[] {
  return names.flatMap((name, index) =>
    names.indexOf(name) === index ? [] : [{ path: path(index), message: `${what} "${name}" is used twice` }],
  )
}

/** Ids and tags are one namespace: clients name either. */
function checkNames(models: readonly Model[]): Finding[] {
  const findings = duplicates(
    models.map((model) => model.id),
    (index) => ['models', index, 'id'],
    'model id',
  )
  const ids = new Set(models.map((model) => model.id))
  const owners = new Map<string, string>()
  for (const [index, { id, tags }] of models.entries()) {
    if (id === 'auto')
      findings.push({ path: ['models', index, 'id'], message: '"auto" is reserved: it lets the router choose' })
    for (const [place, tag] of tags.entries()) {
      const path = ['models', index, 'tags', place]
      const owner = owners.get(tag)
      if (tag === 'auto') findings.push({ path, message: '"auto" is reserved: it lets the router choose' })
      else if (ids.has(tag)) findings.push({ path, message: `tag "${tag}" is the id of a model` })
      else if (owner !== undefined) findings.push({ path, message: `tag "${tag}" already belongs to model "${owner}"` })
      else owners.set(tag, id)
    }
  }
  return findings
}

function checkModel(model: Model, path: KeyPath, deviceIds: readonly string[]): Finding[] {
  return [...checkLadder(model, path), ...checkPlacement(model, path, deviceIds), ...checkPolicy(model, path)]
}

function checkPlacement(model: Model, path: KeyPath, deviceIds: readonly string[]): Finding[] {
  const devices = model.placement.devices ?? []
  const known = deviceIds.length > 0 ? deviceIds : ['gpu0', 'cpu0']
  const place = (index: number) => [...path, 'placement', 'devices', index]
  const unknown = devices.flatMap((id, index) => {
    if (deviceIds.includes(id) || (deviceIds.length === 0 && isDefaultDevice(id))) return []
    const near = nearest(id, known)
    return [
      {
        path: place(index),
        message: `no device "${id}"; ${near === undefined ? `devices: ${known.join(', ')}` : `did you mean "${near}"?`}`,
      },
    ]
  })
  return [...unknown, ...duplicates(devices, place, 'device')]
}

function checkPolicy(model: Model, path: KeyPath): Finding[] {
  const lowest = model.policy.min_precision
  const findings = duplicates(model.policy.degrade_on, (index) => [...path, 'policy', 'degrade_on', index], 'cause')
  // A rung that is read from its file may be the one; the engine finds out.
  const stated = model.variants.every((variant) => variant.precision !== undefined)
  if (lowest !== undefined && stated && !model.variants.some((variant) => variant.precision === lowest)) {
    findings.push({ path: [...path, 'policy', 'min_precision'], message: `the ladder has no ${lowest} rung` })
  }
  return findings
}

function checkLadder(model: Model, path: KeyPath): Finding[] {
  const findings: Finding[] = []
  let worst = -1
  for (const [index, variant] of model.variants.entries()) {
    const { precision } = variant
    const here = [...path, 'variants', index]
    const rank = precision === undefined ? worst : LADDER.indexOf(precision)
    const first = model.variants.findIndex((other) => other.precision === precision)
    if (precision !== undefined && first < index)
      findings.push({ path: [...here, 'precision'], message: `${precision} is listed twice` })
    else if (rank < worst)
      findings.push({
        path: [...here, 'precision'],
        message: `${precision} stands below a worse rung; the best precision comes first`,
      })
    worst = rank
    const source = sourceFinding(model, variant)
    if (source !== undefined) findings.push({ ...source, path: [...here, ...source.path] })
  }
  return findings
}

function sourceFinding(model: Model, variant: Model['variants'][number]): Finding | undefined {
  const { precision, path, from, format, family } = variant
  if (path !== undefined && from !== undefined)
    return { path: ['from'], key: true, message: 'a rung has either path or from, not both' }
  if (path !== undefined) return undefined
  if (from === undefined) return { path: [], message: 'a rung needs a path, or from: the rung it is derived from' }
  if (precision === undefined) return { path: [], message: 'a rung with from needs a precision' }
  if (format !== undefined || family !== undefined)
    return { path: [format === undefined ? 'family' : 'format'], key: true, message: 'only a rung with a path has it' }
  return derivedFinding(model, precision, from)
}

function derivedFinding(model: Model, precision: Precision, from: Precision): Finding | undefined {
  if (LADDER.indexOf(from) >= LADDER.indexOf(precision))
    return { path: ['from'], message: `${from} is not better than ${precision}` }
  const source = model.variants.find((other) => other.precision === from)
  if (source === undefined) {
    // A rung whose precision is read from its file may be the one; the engine finds out.
    if (model.variants.some((other) => other.precision === undefined && other.path !== undefined)) return undefined
    return { path: ['from'], message: `the ladder has no ${from} rung` }
  }
  if (source.path === undefined)
    return { path: ['from'], message: `the ${from} rung has no file of its own; name one that has a path` }
  return undefined
}
