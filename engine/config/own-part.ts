import { join } from 'node:path'
import type { Config } from './schema.js'

/** What one of several engines serves. */
export interface OwnPart {
  /** With its device alone, and its part of what the engines share. */
  config: Config
  /** Models that another engine loads at its start; this one loads them when a request needs them. */
  elsewhere: ReadonlySet<string>
}

/**
 * The part of the engine of `device` where each device has one. Each model is loaded at the start by its first device, those
 * without placement by one after the other. Pure.
 */
export function ownPart(config: Config, device: string): OwnPart {
  const { server, devices, models } = config
  const { cache_dir: folder, cache_gb: size } = server
  const cache = folder === undefined ? {} : { cache_dir: join(folder, device), cache_gb: size / devices.length }
  const elsewhere = models.filter(({ placement }, index) => {
    const home = placement.devices?.[0] ?? devices[index % devices.length]?.id
    return home !== device
  })
  return {
    config: { ...config, server: { ...server, ...cache }, devices: devices.filter(({ id }) => id === device) },
    elsewhere: new Set(elsewhere.map(({ id }) => id)),
  }
}
