/**
 * The commands {@code eval}, {@code compare} and {@code routes}, and options of models and
 * generation.
 */
package org.meteora.eval.command;
