import type { Config } from './schema.js'

/**
 * Models that the engine of `device` leaves to others at its start, where each device has an engine: each model is loaded by
 * its first device, those without placement by one after the other. Pure.
 */
export function modelsElsewhere({ devices, models }: Config, device: string): Set<string> {
  const homes = models.map(({ id, placement }, index) => {
    const [first] = placement.devices ?? []
    return { id, home: first ?? devices[index % devices.length]?.id }
  })
  return new Set(homes.flatMap(({ id, home }) => (home === device ? [] : [id])))
}
