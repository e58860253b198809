/** Saved answers and results, and tables of scores. */
package org.meteora.eval.report;
