/** Bytes in decimal units with three digits: "98.1 MB". */
export function formatBytes(bytes: number): string {
  return scaled(bytes, ['B', 'kB', 'MB', 'GB', 'TB'])
}

/** A count with three digits: "135 M". */
export function formatCount(count: number): string {
  return scaled(count, ['', 'k', 'M', 'G', 'T'])
}

function scaled(value: number, units: readonly string[]): string {
  let left = value
  let unit = 0
  while (left >= 999.5 && unit < units.length - 1) {
    left /= 1000
    unit++
  }
  return `${unit === 0 ? Math.round(left * 10) / 10 : left.toPrecision(3)} ${units[unit]}`.trimEnd()
}
