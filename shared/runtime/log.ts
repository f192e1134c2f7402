import { compareLogLevel, getJsonLinesFormatter, type LogLevel } from '@logtape/logtape'

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const
export type LogSetting = (typeof LOG_LEVELS)[number]

/** Writes one structured line a call. `message` is a constant sentence; what varies goes into `fields`. Never pass a payload: it may hold secrets. */
export interface Log {
  debug(message: string, fields?: Record<string, unknown>): void
  info(message: string, fields?: Record<string, unknown>): void
  warn(message: string, fields?: Record<string, unknown>): void
  error(message: string, fields?: Record<string, unknown>): void
}

const format = getJsonLinesFormatter({ properties: 'flatten' })

/**
 * A logger that hands JSON lines of `level` and above to `write` (the console when left out); `silent` writes nothing.
 * Records have LogTape's shape and format, but not its global configuration: two loggers in one process never share a level or a sink.
 */
export function createLogger(level: LogSetting, write: (line: string) => void = (line) => console.log(line)): Log {
  const lowest: LogLevel | null = level === 'silent' ? null : level === 'warn' ? 'warning' : level
  const at =
    (recordLevel: LogLevel) =>
    (message: string, fields: Record<string, unknown> = {}): void => {
      if (lowest === null || compareLogLevel(recordLevel, lowest) < 0) return
      const record = { category: ['tasker'], level: recordLevel, message: [message], rawMessage: message }
      write(format({ ...record, timestamp: Date.now(), properties: fields }).trimEnd())
    }
  return { debug: at('debug'), info: at('info'), warn: at('warning'), error: at('error') }
}

/** For tests and embedding. */
export const silentLog: Log = createLogger('silent')
